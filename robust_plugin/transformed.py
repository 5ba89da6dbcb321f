"""Layers that compute with another weight than the one they hold: a mask on it prunes nothing.

A weight-standardised convolution takes (w - mean) / std, which makes -mean / std of a mask's zeros.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.groups import Member

# Outputs of a layer that are looked at.
_OUTPUTS = 8
# A derivative this small beside the largest is rounding.
_ROUNDING = 1e-9


def keeps_zeros(layer: nn.Module) -> bool | None:
    """Return whether a layer computes with zeros where its weight has them; None if unknown.

    Layers of torch do. Of others, a copy gets a weight that is half zeros. The derivative of one
    of its outputs by the input is then the weight that it computes with, and may have no more
    entries than the zeros leave. Unknown is what a copy cannot be asked: a layer of several inputs,
    or one whose forward fixes its dtype.

    Args:
        layer: without a mask; it is left as it is.
    """
    ours = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    if not ours or type(layer).__module__.startswith("torch."):
        return True
    try:
        trial: Any = copy.deepcopy(layer).eval().double()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(trial.weight.shape, generator=generator, dtype=torch.double)
        weight *= torch.rand(weight.shape, generator=generator) < 0.5
        with torch.no_grad():
            for other in trial.parameters():  # a gain may start at 0, where nothing shows
                other.copy_(0.5 + torch.rand(other.shape, generator=generator, dtype=torch.double))
            trial.weight.copy_(weight)
        return all(used <= kept for used, kept in _entries(trial, generator))
    except Exception:  # a forward of its own fails in any way it likes
        return None


def _entries(layer: Any, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """Of some outputs, how many inputs they read, and how many entries of the weight are left."""
    shape = [1, layer.weight.shape[1]]
    if isinstance(layer, nn.modules.conv._ConvNd):
        reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        shape = [1, layer.in_channels, *(2 * each + 1 for each in reach)]
    x = torch.rand(shape, generator=generator, dtype=torch.double).requires_grad_()
    with torch.enable_grad():
        out = layer(x)
        middle = tuple(size // 2 for size in out.shape[2:])  # which no padding reaches
        for number in range(min(_OUTPUTS, out.shape[1])):
            place = (0, number, *middle)
            (grad,) = torch.autograd.grad(out[place], x, retain_graph=True)
            used = int((grad.abs() > _ROUNDING * grad.abs().max()).sum())
            yield used, int(_filter(layer, number).count_nonzero())


def _filter(layer: Any, number: int) -> Tensor:
    """Return the entries of the weight that make an output channel."""
    weight: Tensor = layer.weight
    if not getattr(layer, "transposed", False):
        return weight[number]
    outs, ins = weight.shape[1], layer.in_channels // layer.groups
    group = number // outs
    return weight[group * ins : (group + 1) * ins, number % outs]


def refuse_transformed(members: Iterable[Member]) -> None:
    """Raise if a mask on a weight would not reach what the layer computes with.

    Raises:
        ValueError: naming the layers.

    Warns:
        UserWarning: for layers of which that is unknown.
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
            f"{kinds.partition(',')[0]})]; or write the weight's transform as a parametrization "
            "of what the mask leaves."
        )
