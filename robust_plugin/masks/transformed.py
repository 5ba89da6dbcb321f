"""Layers that compute with another weight than the one they store: their masks prune nothing.

For example, a weight-standardised convolution computes with (w - mean) / std, which turns the zeros
of a mask into -mean / std. ``refuse_transformed`` refuses masks on such layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from robust_plugin.masks.groups import Member

_FUNCTIONS = (
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
    F.conv_transpose3d,
)  # fmt: skip


class _Weights(TorchFunctionMode):
    """Mode that collects the weights of one shape that convolutions and linear functions get.

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
    """Return whether zeros of a layer's weight are zeros in the computation; None if unknown.

    They are in torch's own layers. Of another layer a copy runs once, with a weight that is half
    zeros, and the weight that it passes to a convolution or linear function is compared. The answer
    is unknown if the layer takes several inputs or computes by other functions.

    Args:
        layer: layer with or without a mask; it does not change.
    """
    kind = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
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

    If a mask is attached, the weight keeps its values, because the mask has zeros.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):  # a gain of 0 would hide the weight
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        if not parametrize.is_parametrized(layer):
            layer.weight.sub_(1).mul_(torch.rand(layer.weight.shape, generator=generator) < 0.5)


def _input_of(layer: Any) -> Tensor:
    """Return a random input of two examples that fits the layer."""
    shape = [2, layer.weight.shape[1]]
    if isinstance(layer, nn.modules.conv._ConvNd):
        reach = zip(layer.dilation, layer.kernel_size, strict=True)
        shape = [2, layer.in_channels, *(d * (k - 1) + 2 for d, k in reach)]
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def refuse_transformed(members: Iterable[Member]) -> None:
    """Raise an error if a layer computes with another weight than the one that its mask covers.

    Args:
        members: parameters to mask.

    Raises:
        ValueError: naming the layers.

    Warns:
        UserWarning: for layers whose computation is unknown.
    """
    judged = {m.layer_name: (m.layer, keeps_zeros(m.layer)) for m in members if m.dim is None}
    unknown = [name for name, (_, keeps) in judged.items() if keeps is None]
    if unknown:
        warnings.warn(
            f"{len(unknown)} layers with a forward of their own could not be tried alone, such as "
            f"{unknown[0]!r}: if they compute with another weight than the one they hold, its mask "
            "prunes nothing. Name them in exclude, or see that zeros stay zeros.",
            stacklevel=4,
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
