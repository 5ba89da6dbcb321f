"""FLOPs: how many multiply-adds each weight of a model takes part in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_plugin.budget.budget import Products
from robust_plugin.masks.attach import held_weights
from robust_plugin.masks.groups import Group

_FUNCTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)


class _FunctionalUse(TorchFunctionMode):
    """See which weights are handed to a function, as torchvision's Swin does with its qkv.

    Args:
        weights: layer names by the id of the weight.
    """

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.positions: dict[str, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            name = self.weights.get(id(weight))
            if name is not None:
                positions = out.numel() // weight.shape[0]
                self.positions[name] = self.positions.get(name, 0) + positions
        return out


def multiply_adds(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]
) -> dict[tuple[str, str], int]:
    """Count the multiply-adds a single weight of each layer takes part in, for one example.

    A traced forward pass of the model as it is: a convolution's weight is used once an output
    position (transposed: an input position), a linear layer's once a token, layers called twice
    count twice. A weight whose layer is never called counts where it is handed to a function.
    Flags, statistics and gradients of the model are left alone.

    Args:
        model: any model.
        example_inputs: what its forward takes, with a batch dimension first.

    Returns:
        dict: (layer name, parameter name) -> multiply-adds a weight.

    Raises:
        TypeError: if the inputs are no tensors.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not (inputs and all(isinstance(each, Tensor) for each in inputs)):
        shown = ", ".join(type(each).__name__ for each in inputs) or "empty"
        raise TypeError(f"example_inputs is {shown}; give what one forward pass takes, as x[:1].")
    batch = inputs[0].shape[0]
    found: dict[tuple[str, str], int] = {}

    def count(name: str, parameter: str, positions: int) -> None:
        found[name, parameter] = found.get((name, parameter), 0) + positions // batch

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle | None:
        def of_output(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            transposed = getattr(layer, "transposed", False)
            used = args[0] if transposed else out
            channels = getattr(layer, "in_channels" if transposed else "out_channels", None)
            count(name, "weight", used.numel() // (channels or out.shape[-1]))

        def of_attention(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], __: object
        ) -> None:
            query = args[0] if args else kwargs["query"]
            count(name, "in_proj_weight", query.numel() // query.shape[-1])
            # The fused attention reads out_proj's weight without calling the layer.
            count(f"{name}.out_proj", "weight", query.numel() // query.shape[-1])

        if isinstance(layer, nn.MultiheadAttention):
            return layer.register_forward_hook(of_attention, with_kwargs=True)
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            return layer.register_forward_hook(of_output)
        return None

    flags = {module: module.training for module in model.modules()}
    handles = [watch(name, layer) for name, layer in model.named_modules()]
    try:
        model.eval()
        # Held, a masked weight is one tensor, known by its id, at every access.
        with torch.no_grad(), held_weights(model):
            layers = [
                (name, layer)
                for name, layer in model.named_modules()
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            ]
            with _FunctionalUse({id(layer.weight): name for name, layer in layers}) as functional:
                model(*inputs)
    finally:
        for handle in handles:
            if handle is not None:
                handle.remove()
        for module, training in flags.items():
            module.training = training
    for name, positions in functional.positions.items():
        if (name, "weight") not in found:
            count(name, "weight", positions)
    return found


def total_multiply_adds(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> int:
    """Count the multiply-adds of one example in all convolution, linear and attention weights."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return sum(
        parameters[f"{layer}.{key}" if layer else key].numel() * positions
        for (layer, key), positions in multiply_adds(model, example_inputs).items()
    )


@dataclass(frozen=True)
class Terms:
    """What counts n of units leave: fixed + sum_l costs_l n_l + sum c_ij n_i n_j.

    Attributes:
        costs: one a group.
        products: (i, j, c_ij).
        fixed: what does not depend on the counts.
    """

    costs: tuple[int, ...]
    products: Products
    fixed: int


@dataclass
class _Extent:
    """The length of a dimension: fixed + sum of entries a unit times the group's count."""

    fixed: int
    entries: dict[int, int] = field(default_factory=dict)


def count_terms(
    model: nn.Module, groups: Sequence[Group], macs: Mapping[tuple[str, str], int] | None
) -> Terms:
    """Count what a network costs whose groups keep n_l units, by its actual dependencies.

    A parameter's size is the product of its dimensions, each of which may be a sum over groups
    (concatenations) and a rest: a convolution between two groups costs c n_i n_j, a depthwise one
    or a norm c n_i, a layer outside all groups is fixed. Shortcuts are layers like others.

    Args:
        model: without masks.
        groups: with what is coupled to them.
        macs: multiply-adds one entry of (layer, parameter) takes part in; None counts entries.

    Raises:
        ValueError: if three dimensions of a parameter follow groups.
    """
    extents: dict[tuple[str, str], dict[int, _Extent]] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    seen: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        for key, parameter in layer.named_parameters(recurse=False):
            if macs is not None or parameter not in seen:  # tied weights are stored once
                shapes[name, key] = tuple(parameter.shape)
            seen.add(parameter)
    for number, group in enumerate(groups):
        for member in (*group.members, *group.coupled):
            place, dim = (member.layer_name, member.parameter), member.dim or 0
            length = shapes[place][dim]
            extent = extents.setdefault(place, {}).setdefault(dim, _Extent(length))
            covered = length if member.index is None else int((member.index >= 0).sum())
            extent.fixed -= covered
            each = covered // group.size
            extent.entries[number] = extent.entries.get(number, 0) + each
    costs, products, fixed = [0] * len(groups), dict[tuple[int, int], int](), 0
    for place, shape in shapes.items():
        positions = 1 if macs is None else macs.get(place, 0)
        moving = extents.get(place, {})
        rest = positions * prod(n for dim, n in enumerate(shape) if dim not in moving)
        if len(moving) > 2:
            raise ValueError(f"{'.'.join(place)}: {len(moving)} dimensions follow groups.")
        one, other = (*moving.values(), _Extent(1), _Extent(1))[:2]
        fixed += rest * one.fixed * other.fixed
        for i, each in one.entries.items():
            costs[i] += rest * each * other.fixed
        for j, each in other.entries.items():
            costs[j] += rest * each * one.fixed
        for i, each in one.entries.items():
            for j, every in other.entries.items():
                pair = (min(i, j), max(i, j))
                products[pair] = products.get(pair, 0) + rest * each * every
    return Terms(
        tuple(costs), tuple((i, j, c) for (i, j), c in sorted(products.items()) if c), fixed
    )
