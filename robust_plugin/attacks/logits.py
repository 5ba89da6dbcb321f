"""Logits of clean inputs, checked, with one sentence for inputs that a network cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn


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
    with naming_inputs(model, x):
        logits = model(x)
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


@contextmanager
def naming_inputs(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Turn torch's error for inputs that the network does not take into one sentence.

    Args:
        model: the network that is called inside, in evaluation mode.
        x: the inputs, shape [B, ...].

    Raises:
        ValueError: if something inside fails, and a plain forward pass of ``x`` does, too.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError):
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, IndexError, ValueError) as failure:
            refuse_inputs(model, x, failure)
        raise


def refuse_inputs(model: nn.Module, x: Tensor, error: Exception) -> NoReturn:
    """Raise what a model, or its bounds, failed with on inputs, as a sentence about the inputs.

    Errors of memory and ValueErrors of the network's own code are raised as they are.

    Raises:
        ValueError: for a shape or a dtype that the model cannot take.
    """
    own = isinstance(error, ValueError) and not _raised_by_torch(error)
    if own or isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.dtype != x.dtype:
        raise ValueError(
            f"inputs are {x.dtype} and the model's weights {weight.dtype}; give x.to({weight.dtype}"
            f"), or the model as model.to({x.dtype})."
        ) from error
    if weight is not None and weight.device != x.device:
        raise ValueError(
            f"inputs are on {x.device} and the model on {weight.device}; give x.to("
            f"{str(weight.device)!r})."
        ) from error
    raise ValueError(
        f"the model cannot take inputs of shape {tuple(x.shape)} ({error}); legal: [B, ...], a "
        "batch of what it was made for. One point is x[:1]."
    ) from error


def _raised_by_torch(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("torch.")


class NotFinite(ValueError):
    """A network returned NaN or infinity, as one does whose training has diverged."""


def check_logits(logits: object, y: Tensor) -> Tensor:
    """Return the logits if they are finite and of shape [B, classes], with labels to match.

    Raises:
        TypeError: if the model returned something else than a tensor.
        NotFinite: for NaN or infinity.
        ValueError: for another shape, a single output, or labels outside 0..classes-1.
    """
    found = check_labels(logits, y)
    if not bool(found.isfinite().all()):
        raise NotFinite("the model returned logits that are not finite.")
    return found


def check_labels(logits: object, y: Tensor) -> Tensor:
    """Return the logits if their shape is [B, classes] and the labels match; they may be infinite.

    For losses: where a GradScaler finds gradients that are not finite, it skips the step.

    Raises:
        TypeError: if the model returned something else than a tensor.
        ValueError: for another shape, a single output, or labels outside 0..classes-1.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned a {type(logits).__name__}; give a model that returns logits "
            "alone, e.g. a wrapper whose forward picks them."
        )
    if y.dim() != 1:
        raise ValueError(f"labels have shape {tuple(y.shape)}; legal: one integer a point.")
    if logits.dim() != 2 or len(logits) != len(y):
        raise ValueError(
            f"the model returned shape {tuple(logits.shape)} for {len(y)} labels; legal: "
            "[batch, classes]."
        )
    if logits.shape[1] < 2:
        raise ValueError(
            "the model returned one output a point; legal: one for each of two classes or more. "
            "Of a single logit z make two, torch.cat([-z, z], 1)."
        )
    if y.is_floating_point():
        raise ValueError(
            f"labels are {y.dtype}; legal: integers 0 to {logits.shape[1] - 1}, the model has "
            f"{logits.shape[1]} classes."
        )
    whole = y.long()
    if not bool(((whole >= 0) & (whole < logits.shape[1])).all()):
        least, most = (int(end) for end in whole.aminmax())
        raise ValueError(
            f"labels are {y.dtype} from {least} to {most}; legal: integers 0 "
            f"to {logits.shape[1] - 1}, the model has {logits.shape[1]} classes."
        )
    return logits
