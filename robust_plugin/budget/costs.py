"""The cost of each weight in multiply-adds, and the cost of a network with fewer channels.

``multiply_adds`` counts FLOPs by a traced forward pass. ``count_terms`` derives the cost of a whole
network as a function of how many channels its groups of coupled layers keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_plugin.budget.quadratic import Terms
from robust_plugin.masks.attach import held_weights
from robust_plugin.masks.groups import Group
from robust_plugin.runtime.contexts import evaluating

_FUNCTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)


class _FunctionalUse(TorchFunctionMode):
    """Context in which calls of functions such as F.linear(x, weight) are counted per weight.

    torchvision's Swin uses the weight of its qkv layer like this, without calling the layer.

    Args:
        weights: name of the layer of each weight, by the id() of the weight.

    Attributes:
        positions: for each layer name, how many output vectors (tokens or pixels of the whole
            batch) were computed with its weight.
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
    """Count for each layer in how many multiply-adds a single weight takes part, for one example.

    The counts come from one forward pass. A convolution uses a weight once per output position, a
    transposed convolution once per input position, and a linear layer once per token. A layer
    called twice counts twice. If a layer is never called but its weight is passed to a function
    (F.linear, say), the calls of the function count. Training flags, running statistics and
    gradients of the model do not change.

    Args:
        model: any model, with or without masks.
        example_inputs: inputs of one forward pass, a tensor or a tuple of tensors, with the batch
            as first dimension.

    Returns:
        dict: multiply-adds per weight for each (layer name, parameter name).

    Raises:
        TypeError: if the inputs are not tensors.
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
        def count_layer(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            transposed = getattr(layer, "transposed", False)
            used = args[0] if transposed else out
            channels = getattr(layer, "in_channels" if transposed else "out_channels", None)
            count(name, "weight", used.numel() // (channels or out.shape[-1]))

        def count_attention(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], __: object
        ) -> None:
            query = args[0] if args else kwargs["query"]
            count(name, "in_proj_weight", query.numel() // query.shape[-1])
            # The fused attention reads the weight of out_proj without calling that layer.
            count(f"{name}.out_proj", "weight", query.numel() // query.shape[-1])

        if isinstance(layer, nn.MultiheadAttention):
            return layer.register_forward_hook(count_attention, with_kwargs=True)
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            return layer.register_forward_hook(count_layer)
        return None

    handles = [watch(name, layer) for name, layer in model.named_modules()]
    try:
        # Inside held_weights a masked weight is the same tensor, with the same id, at every access.
        with evaluating(model), torch.no_grad(), held_weights(model):
            layers = [
                (name, layer)
                for name, layer in model.named_modules()
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            ]
            with _FunctionalUse({id(layer.weight): name for name, layer in layers}) as functional:
                try:
                    model(*inputs)
                except (RuntimeError, IndexError, ValueError, TypeError) as error:
                    shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
                    raise ValueError(
                        f"the model cannot take example_inputs of shape {shapes} ({error}); give "
                        "what one forward pass takes, as x[:1]."
                    ) from error
    finally:
        for handle in handles:
            if handle is not None:
                handle.remove()
    for name, positions in functional.positions.items():
        if (name, "weight") not in found:
            count(name, "weight", positions)
    return found


def total_multiply_adds(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> int:
    """Return the multiply-adds of a forward pass of one example; pruned weights count too.

    Convolutions, linear layers and attention count; other operations do not.

    Args:
        model: any model without masks.
        example_inputs: inputs of one forward pass, with the batch as first dimension.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return sum(
        parameters[f"{layer}.{key}" if layer else key].numel() * positions
        for (layer, key), positions in multiply_adds(model, example_inputs).items()
    )


@dataclass
class _Extent:
    """Length of one dimension of a parameter, if group l of channels keeps n_l channels.

    The length is fixed + sum_l entries_l n_l.

    Attributes:
        fixed: how many indices of the dimension belong to no group.
        entries: for the index l of a group, how many indices of the dimension belong to each of its
            channels.
    """

    fixed: int
    entries: dict[int, int] = field(default_factory=dict)


def count_terms(
    model: nn.Module, groups: Sequence[Group], macs: Mapping[tuple[str, str], int] | None
) -> Terms:
    """Return the cost of a whole network as a function of n_l, the channels that group l keeps.

    The size of a parameter is the product of the lengths of its dimensions. Behind a concatenation,
    the length of a dimension is a sum over several groups and channels that stay. A convolution
    between two groups therefore costs c n_i n_j, a depthwise convolution or a normalisation layer
    costs c n_i, and a layer outside of all groups has a fixed cost. The layers of shortcuts count
    like all others.

    Args:
        model: network without masks.
        groups: groups of channels that are removed together, with all parameters that they shorten.
        macs: result of ``multiply_adds``, for a cost in multiply-adds; None for a cost in
            parameters.

    Returns:
        Terms: fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j.

    Raises:
        ValueError: if three dimensions of one parameter belong to groups.
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
