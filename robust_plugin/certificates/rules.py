"""What each layer and each operation of a traced network does to a set of inputs.

Sound or absent: whatever has no rule here raises, by its name. A subclass may compute something
else than its parent, so that only the classes themselves have rules.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robust_plugin.certificates.intervals import Ball, Bounded, Interval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RISING = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.LogSigmoid, nn.Hardtanh,
    nn.Hardsigmoid, nn.Softsign, nn.SELU,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# These rise everywhere if this attribute is not negative.
_SLOPES: dict[type[nn.Module], str] = {
    nn.LeakyReLU: "negative_slope",
    nn.ELU: "alpha",
    nn.CELU: "alpha",
}
_MEANS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

# Functions, and methods of tensors by name.
_RISING_CALLS = {
    torch.relu, F.relu, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh,
    F.max_pool1d, F.max_pool2d, F.max_pool3d,
    "relu", "relu_", "sigmoid", "tanh",
}  # fmt: skip
RELUS = {torch.relu, F.relu, "relu", "relu_"}
_MEAN_CALLS = {
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    "contiguous",
}  # fmt: skip
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUBTRACT = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MULTIPLY = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_DIVIDE = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
# What may give its own input back, or another view of it.
ALIASES: tuple[Any, ...] = (
    nn.Identity, nn.Flatten, *_DROPOUTS,
    torch.flatten, F.dropout, "flatten", "contiguous",
)  # fmt: skip
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """Return a layer's class, seen through the parametrization that a mask adds."""
    kind = type(layer)
    return kind.__bases__[0] if parametrize.is_parametrized(layer) else kind


def through_layer(
    name: str, layer: Any, z: Bounded, statistics: tuple[Tensor, Tensor] | None = None
) -> Bounded:
    """Return what a layer makes of a set.

    Args:
        name: for errors.
        layer: of any class.
        z: its inputs.
        statistics: mean and variance that a BatchNorm uses, whatever its mode; None for its running
            ones.

    Raises:
        ValueError: naming the layer, if there is no rule for it.
    """
    kind = kind_of(layer)
    if kind is nn.Linear:
        return z.linear(F.linear, layer.weight, layer.bias)
    if kind in CONVOLUTIONS:
        # Other padding takes a pixel twice, and norms of rows count it once.
        z = z if layer.padding_mode == "zeros" else z.box()
        return z.linear(layer._conv_forward, layer.weight, layer.bias)
    if kind in NORMS:
        scale, shift = scale_and_shift(name, layer, statistics)
        shape = [1, -1, *[1] * (z.box().centre.dim() - 2)]
        return z.affine(scale.view(shape), shift.view(shape))
    if kind in _RISING and not getattr(layer, "return_indices", False):
        return z.rising(layer.forward)
    if kind in _SLOPES and getattr(layer, _SLOPES[kind]) >= 0:
        return z.rising(layer.forward)
    if kind in _MEANS:
        return z.nonnegative(layer.forward)
    if kind is nn.Flatten:
        return _flattened(name, z, layer.start_dim, layer.end_dim)
    if kind is nn.Identity:
        return z
    if kind in _DROPOUTS:
        if layer.training and layer.p > 0:
            raise ValueError(
                f"layer {name!r} drops at random; bounds are of the network in evaluation mode: "
                "call its eval(), or set p=0."
            )
        return z
    raise ValueError(
        f"layer {name!r} is {layer}, of which there are no interval bounds; legal: linear, "
        "convolution, BatchNorm, rising activations, pooling, Flatten(1), Dropout, Identity."
    )


def through_call(name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bounded:
    """Return what a function, or a method of tensors by name, makes of sets and constants.

    Raises:
        ValueError: naming the operation, if there is no rule for it.
    """
    z, others = (args[0] if args else None), args[1:]
    if isinstance(z, Interval | Ball) and not any(isinstance(a, Interval | Ball) for a in others):
        if target in _RISING_CALLS and not kwargs.get("return_indices"):
            return z.rising(partial(_called, target, others, kwargs))
        if target in _MEAN_CALLS:
            return z.nonnegative(partial(_called, target, others, kwargs))
        if target in (torch.flatten, "flatten"):
            return _flattened(name, z, *_named(others, kwargs, start_dim=0, end_dim=-1))
        if target in (torch.mean, "mean"):
            dim, keepdim = _named(others, kwargs, dim=None, keepdim=False)
            dims = [dim] if isinstance(dim, int) else list(dim or [])
            if dims and all(d % z.box().centre.dim() for d in dims):
                return z.nonnegative(lambda v: v.mean(dims, keepdim=keepdim))
        if target is F.dropout and not kwargs.get("training", True):
            return z
    if (
        target is torch.cat
        and isinstance(z, list | tuple)
        and all(isinstance(each, Interval | Ball) for each in z)
    ):
        boxes, (dim,) = [each.box() for each in z], _named(others, kwargs, dim=0)
        if dim % boxes[0].centre.dim():
            return Interval(
                torch.cat([box.centre for box in boxes], dim),
                torch.cat([box.radius for box in boxes], dim),
            )
    if len(args) == 2 and not kwargs:
        found = _arithmetic(target, *args)
        if found is not None:
            return found
    if target in ("view", "reshape", "size", torch.reshape, "shape", getattr):
        raise ValueError(
            f"{name!r} reshapes by hand; bounds need flatten(1), which keeps the batch: write "
            "x.flatten(1) for x.view(x.size(0), -1)."
        )
    shown = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
    raise ValueError(
        f"operation {shown!r} ({name}) has no interval bounds with these arguments; legal: sums, "
        "differences, cat beyond dimension 0, constants times or divided, flatten(1), means over "
        "other dimensions than the batch, relu, sigmoid, tanh, pooling."
    )


def works_in_place(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation may write over its input: any True could be its ``inplace``."""
    if isinstance(target, str):
        return target.endswith("_")
    return target in _IN_PLACE or any(each is True for each in (*args, kwargs.get("inplace")))


def _arithmetic(target: Any, a: Any, b: Any) -> Bounded | None:
    """Return a + b, a - b, a b or a / b, one of them a set, or None without a rule."""
    sets = isinstance(a, Interval | Ball), isinstance(b, Interval | Ball)
    if all(sets) and target in _ADD | _SUBTRACT:
        one, two = a.box(), b.box()
        centre = one.centre + two.centre if target in _ADD else one.centre - two.centre
        return Interval(centre, one.radius + two.radius)
    z: Bounded = a if sets[0] else b
    constant = b if sets[0] else a
    if all(sets) or not isinstance(constant, Tensor | int | float):
        return None
    constant = constant if isinstance(constant, Tensor) else float(constant)
    if target in _ADD:
        return z.affine(1.0, constant)
    if target in _SUBTRACT:
        return z.affine(1.0, -constant) if sets[0] else z.affine(-1.0, constant)
    if target in _MULTIPLY:
        return z.affine(constant, 0.0)
    if target in _DIVIDE and sets[0]:
        return z.affine(1 / constant, 0.0)
    return None


def _called(target: Any, others: tuple[Any, ...], kwargs: dict[str, Any], v: Tensor) -> Tensor:
    # An operation in place would write over a tensor that other rules still read.
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if isinstance(target, str):
        result: Tensor = getattr(v, target.rstrip("_"))(*others, **kwargs)
        return result
    result = target(v, *others, **kwargs)
    return result


def _named(others: tuple[Any, ...], kwargs: dict[str, Any], **defaults: Any) -> list[Any]:
    """Return arguments in the order of ``defaults``, given by place or by name."""
    return [
        others[place] if place < len(others) else kwargs.get(key, default)
        for place, (key, default) in enumerate(defaults.items())
    ]


def _flattened(name: str, z: Bounded, start: int, end: int) -> Bounded:
    if start != 1 or end != -1:
        raise ValueError(
            f"{name!r} flattens dimensions {start} to {end}; bounds need flatten(1), which keeps "
            "the batch."
        )
    return z.reshaped(lambda v: v.flatten(1))


def scale_and_shift(
    name: str, norm: Any, statistics: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return what a BatchNorm multiplies by and what it adds then; each of shape [channels].

    Args:
        name: for errors.
        norm: the layer.
        statistics: mean and variance; None for its running ones.

    Raises:
        ValueError: if it has no running statistics.
    """
    if norm.running_mean is None:
        raise ValueError(
            f"layer {name!r} normalises by each batch's own statistics, for which no bounds hold; "
            "give it track_running_stats=True."
        )
    # A later forward pass in training mode writes over running statistics, which this graph needs.
    mean, variance = statistics or (norm.running_mean.clone(), norm.running_var)
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
