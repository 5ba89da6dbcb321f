"""What a network says of clean inputs, and a sentence where it cannot take them."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from robust_plugin.guard import check_logits


def logits_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the checked logits of a model in its present mode.

    Args:
        model: called once.
        x: shape [B, ...].
        y: shape [B].

    Raises:
        TypeError: for labels that are no tensor, or a model that returns none.
        ValueError: for labels that are not one a point, inputs whose shape or dtype the model
            cannot take, and for what ``check_logits`` refuses.
    """
    check_pairs(x, y)
    try:
        logits = model(x)
    except (RuntimeError, IndexError, ValueError) as error:
        refuse_inputs(model, x, error)
    return check_logits(logits, y)


def check_pairs(x: Tensor, y: Tensor) -> None:
    """Raise unless there is one label a point.

    Raises:
        TypeError: for labels that are no tensor.
        ValueError: for other shapes, saying what they are.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"labels are a {type(y).__name__}; give a tensor.")
    if y.dim() != 1 or x.dim() < 1 or len(y) != len(x):
        raise ValueError(
            f"labels have shape {tuple(y.shape)} and inputs {tuple(x.shape)}; legal: one label a "
            "point, shapes [B] and [B, ...]. One point is x[:1] and y[:1]."
        )


def refuse_inputs(model: nn.Module, x: Tensor, error: Exception) -> NoReturn:
    """Raise what a model, or its bounds, failed with on inputs, as a sentence about the inputs.

    Errors of memory and ValueErrors of the network's own code are raised as they are.

    Raises:
        ValueError: for a shape or a dtype that the model cannot take.
    """
    own = isinstance(error, ValueError) and not _raised_by_torch(error)
    if own or isinstance(error, torch.OutOfMemoryError):
        raise error
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.dtype != x.dtype:
        raise ValueError(
            f"inputs are {x.dtype} and the model's weights {weight.dtype}; give x.to({weight.dtype}"
            f"), or the model as model.to({x.dtype})."
        ) from error
    raise ValueError(
        f"the model cannot take inputs of shape {tuple(x.shape)} ({error}); legal: [B, ...], a "
        "batch of what it was made for. One point is x[:1]."
    ) from error


def _raised_by_torch(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("torch.")
