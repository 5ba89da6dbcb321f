"""Checks of single arguments that many functions take: numbers, networks, names of files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# Messages for inputs and labels that are no tensors, and for shapes that do not belong together.
KIND = "{} are a {}; give a tensor, as torch.as_tensor(...) makes."
PAIRS = (
    "labels have shape {} and inputs {}; legal: one label a point, shapes [B] and [B, ...]. One "
    "point is x[:1] and y[:1]."
)


def is_number(value: object) -> bool:
    """Return whether a value is a number: no NaN, no bool, no string.

    >>> is_number(0.1), is_number("0.1"), is_number(True)
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, also one of NumPy, but no bool and no float.

    >>> is_whole(3), is_whole(3.0), is_whole("3")
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_model(model: object) -> nn.Module:
    """Return ``model``, or raise a TypeError that says what to give instead of it.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}; give an nn.Module, made as {model.__name__}()."
        )
    hint = ""
    if isinstance(getattr(model, "model", None), nn.Module):
        hint = " This object has one as its attribute model."
    elif isinstance(model, Mapping):
        hint = " A state_dict goes into one by model.load_state_dict(...)."
    raise TypeError(f"model is a {type(model).__name__}; give an nn.Module.{hint}")


def check_call(model: object, x: object, y: object) -> None:
    """Raise an error unless the arguments of an attack, objective or certificate are of their kind.

    It reads no values, so that it costs a training step about a microsecond.

    Args:
        model: legally an nn.Module.
        x: legally a tensor of inputs, shape [B, ...], with at least one point.
        y: legally a tensor with one label per point.

    Raises:
        TypeError: if ``model`` is no nn.Module, or one of the others no tensor.
        ValueError: if there are no points, or not as many labels as points.
    """
    if isinstance(model, Tensor) or isinstance(x, nn.Module):
        given = ", ".join(type(each).__name__ for each in (model, x, y))
        raise TypeError(
            f"the arguments are ({given}), so that model is a {type(model).__name__}; give an "
            "nn.Module: the order is (model, x, y)."
        )
    check_model(model)
    if not isinstance(x, Tensor):
        raise TypeError(KIND.format("inputs", type(x).__name__))
    if not isinstance(y, Tensor):
        raise TypeError(KIND.format("labels", type(y).__name__))
    if x.dim() == 0 or len(x) == 0:
        fault = "the batch is empty" if x.dim() else "give a batch, [B, ...]. One point is x[:1]"
        raise ValueError(f"inputs have shape {tuple(x.shape)}; {fault}.")
    if y.dim() == 0 or len(y) != len(x):
        raise ValueError(PAIRS.format(tuple(y.shape), tuple(x.shape)))


def check_path(path: Any, *, name: str = "path", written: bool = False) -> Path:
    """Return the name of a file as a Path.

    Args:
        path: the name of a file.
        name: name of the argument, for the error message.
        written: whether the file is to be written, so that it must not be a folder.

    Raises:
        TypeError: if ``path`` is no string and no Path.
        ValueError: if the file is to be written, and ``path`` is a folder.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} is a {type(path).__name__}; give the name of a file, as text.")
    if written and Path(path).is_dir():
        raise ValueError(f"{name} is {path}, a folder; give the name of a file.")
    return Path(path)
