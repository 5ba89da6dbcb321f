"""Rules that bound the results of the functions and tensor methods in a torch.fx trace.

An operation without a rule raises an error that names it, because a guessed rule could be unsound.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.certificates.intervals import Ball, Bounded, Interval
from robust_plugin.certificates.rules import DROPOUTS, flattened

# Functions, and methods of tensors by name, that are non-decreasing in every input.
_RISING_CALLS = {
    torch.relu, F.relu, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh,
    F.max_pool1d, F.max_pool2d, F.max_pool3d,
    "relu", "relu_", "sigmoid", "tanh",
}  # fmt: skip
RELUS = {torch.relu, F.relu, "relu", "relu_"}
# Linear operations without negative weights.
_MEAN_CALLS = {
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    "contiguous",
}  # fmt: skip
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUBTRACT = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MULTIPLY = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_DIVIDE = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
# Layers and operations whose result may be their input, or share memory with it.
ALIASES: tuple[Any, ...] = (
    nn.Identity, nn.Flatten, *DROPOUTS,
    torch.flatten, F.dropout, "flatten", "contiguous",
)  # fmt: skip
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def through_call(name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bounded:
    """Return a set that contains all results of an operation, given the sets of its arguments.

    Args:
        name: the operation's name in the trace, for errors.
        target: the function, or the name of a method of tensors.
        args: the positional arguments: sets (``Interval`` or ``Ball``), tensors and other
            constants.
        kwargs: the keyword arguments.

    Raises:
        ValueError: if there is no rule for the operation; the message names it.
    """
    z, others = (args[0] if args else None), args[1:]
    if isinstance(z, Interval | Ball) and not any(isinstance(a, Interval | Ball) for a in others):
        if target in _RISING_CALLS and not kwargs.get("return_indices"):
            return z.rising(partial(_called, target, others, kwargs))
        if target in _MEAN_CALLS:
            return z.nonnegative(partial(_called, target, others, kwargs))
        if target in (torch.flatten, "flatten"):
            return flattened(name, z, *_named(others, kwargs, start_dim=0, end_dim=-1))
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
            f"{name!r} reshapes in its own code; bounds need flatten(1), which keeps the batch: "
            "write "
            "x.flatten(1) for x.view(x.size(0), -1)."
        )
    shown = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
    raise ValueError(
        f"operation {shown!r} ({name}) has no interval bounds with these arguments; legal: sums, "
        "differences, cat beyond dimension 0, constants times or divided, flatten(1), means over "
        "other dimensions than the batch, relu, sigmoid, tanh, pooling."
    )


def works_in_place(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation may write over its input.

    A positional argument that is True counts as ``inplace=True``, because its name is not known.

    Args:
        target: the function, or the name of a method of tensors.
        args: the positional arguments.
        kwargs: the keyword arguments.
    """
    if isinstance(target, str):
        return target.endswith("_")
    return target in _IN_PLACE or any(each is True for each in (*args, kwargs.get("inplace")))


def _arithmetic(target: Any, a: Any, b: Any) -> Bounded | None:
    """Return a set that contains all results of a + b, a - b, a * b or a / b; None without a rule.

    Args:
        target: the operation: a function, or the name of a method of tensors.
        a: first operand, a set or a constant; at least one of a and b is a set.
        b: second operand.
    """
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
    """Return the result of an operation for a tensor, computed without writing over the tensor.

    An operation that works in place would overwrite a tensor that other rules still read.

    Args:
        target: the function, or the name of a method of tensors.
        others: the positional arguments after the first.
        kwargs: the keyword arguments; ``inplace`` is ignored.
        v: the tensor, the first argument.
    """
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if isinstance(target, str):
        result: Tensor = getattr(v, target.rstrip("_"))(*others, **kwargs)
        return result
    result = target(v, *others, **kwargs)
    return result


def _named(others: tuple[Any, ...], kwargs: dict[str, Any], **defaults: Any) -> list[Any]:
    """Return the values of the arguments named in ``defaults``, in that order.

    Args:
        others: the positional arguments of a call after the first.
        kwargs: the keyword arguments of the call.
        defaults: name and default of each argument, in the order of the call's signature.
    """
    return [
        others[place] if place < len(others) else kwargs.get(key, default)
        for place, (key, default) in enumerate(defaults.items())
    ]
