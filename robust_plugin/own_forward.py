"""Layers with a forward of their own, whose zeros may not be zeros in what they compute.

A weight-standardised convolution computes with (w - mean) / std, so that a pruned weight is a
constant there: 5 % of the weights are not zero and 100 % of the products are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from robust_plugin.groups import Group

_PRODUCTS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm",
}  # fmt: skip
# What torch's own layers compute by.
_METHODS = ("__call__", "forward", "_conv_forward")


def refuse_transformed(groups: Collection[Group]) -> None:
    """Raise if a mask on a layer's weight would not be a mask on what the layer multiplies by.

    Raises:
        ValueError: naming the layer, why, and how to leave it dense.
    """
    for group in groups:
        for member in group.members:
            reason = obstacle(member.layer)
            if reason is not None:
                kind = type(member.layer).__name__
                raise ValueError(
                    f"layer {member.layer_name!r} is a {kind}, which {reason}: a mask would show "
                    "a density that is not what is computed. Leave such layers dense, by "
                    f"exclude=[m for m in model.modules() if type(m).__name__ == {kind!r}], or out "
                    "of the groups that you give."
                )


def obstacle(layer: nn.Module) -> str | None:
    """Return why zeros in a layer's weight may be none in what it computes, or None.

    A copy with half of its weights zero runs on random inputs, in both modes; every product that
    its weight goes into must have zeros in the same places.
    """
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or _is_plain(layer):
        return None
    try:
        trial = _half_zero(layer)
    except Exception as error:  # __deepcopy__ is the layer's own too
        return f"has a forward of its own and cannot be copied to try it ({error})"
    for training in (False, True):
        zero = cast(Tensor, trial.weight).detach() == 0
        watched = _Products(zero)
        try:
            _ran(trial.train(training), watched)
        except Exception as error:  # a forward of the layer's own fails in any way it likes
            return f"has a forward of its own, which does not run alone ({error})"
        if not watched.stays:
            return "has a forward of its own, in which no product with its weight was found"
        if not all(watched.stays):
            return "computes with other weights than it holds, in which zeros are not zero"
    return None


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes as torch's own class does."""
    own = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.mod"))
    return "forward" not in vars(layer) and all(
        getattr(type(layer), name, None) is getattr(own, name, None) for name in _METHODS
    )


def _half_zero(layer: nn.Module) -> nn.Module:
    trial = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(0)
    weight = cast(Tensor, trial.weight)
    if parametrize.is_parametrized(trial, "weight"):
        weight = cast(Any, trial.parametrizations).weight.original
    with torch.no_grad():
        for parameter in trial.parameters():  # a scale of zero would hide everything
            if parameter.is_floating_point():
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        weight.copy_(torch.randn(weight.shape, generator=generator))
        places = torch.randperm(weight.numel(), generator=generator).view(weight.shape)
        weight.mul_((2 * places < weight.numel()).to(weight))
    return trial


class _Products(TorchFunctionMode):
    """Watch what of a layer's weight goes into products.

    Args:
        zero: where the weight is zero.

    Attributes:
        stays: for each product, whether what stands for the weight is zero there.
    """

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero
        self.stays: list[bool] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _PRODUCTS:
            for each in (*args, *kwargs.values()):
                if isinstance(each, Tensor) and each.shape in (self.zero.shape, self.zero.mT.shape):
                    self.stays.append(self._is_zero(each.detach()))
        return func(*args, **kwargs)

    def _is_zero(self, factor: Tensor) -> bool:
        """Whether a factor, maybe the transposed weight, is zero where the weight is."""
        ways = [each for each in (factor, factor.mT) if each.shape == self.zero.shape]
        return any(not bool(each[self.zero].any()) for each in ways)


def _ran(layer: nn.Module, watched: _Products) -> None:
    """Run a layer on random inputs whose shape is not that of its weight."""
    weight = cast(Tensor, layer.weight)
    generator = torch.Generator().manual_seed(1)
    batch = 1 if len(weight) > 1 else 2
    if isinstance(layer, nn.modules.conv._ConvNd):
        reach = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        pads = layer.padding if isinstance(layer.padding, tuple) else (0,) * len(layer.stride)
        sides = [
            max(d * (k - 1) + 1 + s, 2 * p + 1) for (k, d, s), p in zip(reach, pads, strict=True)
        ]
        shape = [batch, layer.in_channels, *sides]
    else:
        shape = [batch, weight.shape[1]]
    x = torch.randn(shape, generator=generator).to(weight)
    with torch.no_grad(), torch.random.fork_rng([]), watched:
        layer(x)
