"""Checks for layers that transform their weight before use, where masks would prune nothing.

For example, a weight-standardised convolution computes with (w - mean) / std, which turns the
weights that a mask has set to zero into -mean / std. ``refuse_transformed`` refuses masks on such
layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_plugin.masks.groups import Member
from robust_plugin.masks.masked_layer import is_masked, plain_class
from robust_plugin.runtime.calls import user_level

_FUNCTIONS = (
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
    F.conv_transpose3d,
)  # fmt: skip


class _Weights(TorchFunctionMode):
    """Context that collects the weights of one shape in all calls of F.linear and F.conv2d, say.

    Args:
        shape: shape of the weights to collect.

    Attributes:
        found: the collected weights, detached.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if weight.shape == self.shape:
                self.found.append(weight.detach())
        return func(*args, **kwargs)


def keeps_zeros(layer: nn.Module) -> bool | None:
    """Return whether a layer computes with zeros where its stored weight is zero.

    Torch's own layers do, and layers other than nn.Linear and convolutions are assumed to. For a
    subclass of these, a copy runs once with a weight that is half zeros, and the weight that the
    copy passes to F.linear or a function such as F.conv2d is compared.

    Args:
        layer: layer with or without a mask; it does not change.

    Returns:
        bool | None: None if unknown, because the copy could not run on a single input or called
        none of these functions.
    """
    kind = plain_class(layer)
    maskable = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    if not maskable or kind.__module__.startswith("torch."):
        return True
    try:
        trial: Any = copy.deepcopy(layer).cpu().eval().float()
        _half_zero(trial)
        zero = trial.weight == 0
        with torch.no_grad(), _Weights(zero.shape) as weights:
            trial(_input_of(trial))
    except Exception:  # the forward of an unknown layer may raise anything
        return None
    if not weights.found:
        return None
    return not any(bool(weight[zero].any()) for weight in weights.found)


def _half_zero(layer: Any) -> None:
    """Set the parameters of a layer to random values, with half of the weight zero.

    If a mask is attached, the weight does not change, because its mask has zeros already.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):  # a gain of 0 would hide the weight
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        if not is_masked(layer):
            layer.weight.sub_(1).mul_(torch.rand(layer.weight.shape, generator=generator) < 0.5)


def _input_of(layer: Any) -> Tensor:
    """Return a random input of two examples that fits the layer."""
    shape = [2, layer.weight.shape[1]]
    if isinstance(layer, nn.modules.conv._ConvNd):
        reach = zip(layer.dilation, layer.kernel_size, strict=True)
        shape = [2, layer.in_channels, *(d * (k - 1) + 2 for d, k in reach)]
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def refuse_transformed(members: Iterable[Member]) -> None:
    """Raise an error if a layer transforms its weight, so that masked weights would not be zero.

    Args:
        members: parameters to mask.

    Raises:
        ValueError: naming the layers that do so.

    Warns:
        UserWarning: if this cannot be found out for a layer, by running it alone.
    """
    judged = {m.layer_name: (m.layer, keeps_zeros(m.layer)) for m in members if m.dim is None}
    unknown = [name for name, (_, keeps) in judged.items() if keeps is None]
    if unknown:
        warnings.warn(
            f"{len(unknown)} layers with a forward of their own could not be tried alone, such as "
            f"{unknown[0]!r}: if they compute with another weight than the one they hold, its mask "
            "prunes nothing. Name them in exclude, or see that zeros stay zeros.",
            stacklevel=user_level(),
        )
    found = {name: layer for name, (layer, keeps) in judged.items() if keeps is False}
    if found:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in found.values()}))
        names = list(found)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{', '.join(map(repr, names[:3]))}{more}: a {kinds} computes with another weight than "
            "the one it holds (standardised, say), which has no zeros where a mask has them. "
            f"Leave such layers dense: exclude=[m for m in model.modules() if isinstance(m, "
            f"{kinds.partition(',')[0]})]; or transform only the weights that the mask keeps, "
            "so that zeros stay zeros."
        )
