"""Checks of logits and labels, and clear error messages for inputs that a network cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from robust_plugin.runtime.values import KIND, PAIRS


def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model in its present mode, and return what it returns, unchecked.

    Raises:
        ValueError: for inputs whose shape, dtype or device the model cannot take.
    """
    with naming_inputs(model, x):
        found: Tensor = model(x)
    return found


def logits_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run a model in its present mode, check its logits and return them, shape [B, classes].

    Args:
        model: network; it is called once.
        x: inputs, shape [B, ...].
        y: labels, shape [B].

    Raises:
        TypeError: if the labels, or what the model returns, are not a tensor.
        ValueError: unless there is one label per point, for inputs whose shape or dtype the model
            cannot take, and for logits or labels that ``check_logits`` refuses.
    """
    check_pairs(x, y)
    return check_logits(outputs_of(model, x), y)


def check_pairs(x: Tensor, y: Tensor) -> None:
    """Raise an error unless there is one label per point.

    Args:
        x: inputs, shape [B, ...].
        y: labels, shape [B].

    Raises:
        TypeError: if the labels are not a tensor.
        ValueError: for other shapes; the message gives them.
    """
    if not isinstance(y, Tensor):
        raise TypeError(KIND.format("labels", type(y).__name__))
    if y.dim() != 1 or x.dim() < 1 or len(y) != len(x):
        raise ValueError(PAIRS.format(tuple(y.shape), tuple(x.shape)))


@contextmanager
def naming_inputs(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Return a context manager that explains torch's error for inputs the network cannot take.

    If the code within the context fails, and a forward pass of ``x`` alone fails too, the error is
    replaced by the ValueError of ``refuse_inputs``. Other errors are raised unchanged.

    Args:
        model: network that the code within the context calls, in evaluation mode.
        x: inputs, shape [B, ...].

    Raises:
        ValueError: naming the shape, dtype or device that the model cannot take.
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
    """Raise a ValueError that says why a network cannot take the inputs.

    An error about memory, and a ValueError of the network's own code, are raised unchanged.

    Args:
        model: network whose forward pass, or computation of bounds, failed.
        x: inputs that it failed on, shape [B, ...].
        error: error that it failed with.

    Raises:
        ValueError: naming the shape, dtype or device that the model cannot take.
    """
    own = isinstance(error, ValueError) and not _raised_by_torch(error)
    if own or isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    if "more than 1 value per channel" in str(error):  # torch's BatchNorm in training mode
        raise ValueError(
            "the batch has one point, and BatchNorm in training mode needs two or more; give the "
            "DataLoader drop_last=True."
        ) from error
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and not x.is_floating_point():
        raise ValueError(
            f"inputs are {x.dtype}; give floats, as x.float() / 255 for images of bytes."
        ) from error
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
    """Return whether torch's Python code raised the error: the innermost frame is of torch."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("torch.")


class NotFinite(ValueError):
    """The error for a network that returned NaN or infinity, as after training has diverged."""


def check_logits(logits: object, y: Tensor) -> Tensor:
    """Return the logits as they are; raise an error unless they are finite and match the labels.

    Args:
        logits: what the model returned; legal: a tensor of shape [B, classes].
        y: labels, shape [B].

    Raises:
        TypeError: if the model did not return a tensor.
        NotFinite: for NaN or infinity.
        ValueError: for another shape, a single output per point, or labels outside 0..classes-1.
    """
    found = check_labels(logits, y)
    if not bool(found.isfinite().all()):
        raise NotFinite("the model returned logits that are not finite.")
    return found


def check_labels(logits: object, y: Tensor) -> Tensor:
    """Return the logits as they are; raise an error unless they match the labels.

    NaN and infinity are legal here: training losses use this check, and with mixed precision a
    GradScaler skips the steps whose gradients are not finite.

    Args:
        logits: what the model returned; legal: a tensor of shape [B, classes].
        y: labels, shape [B].

    Raises:
        TypeError: if the model did not return a tensor.
        ValueError: for another shape, a single output per point, or labels outside 0..classes-1.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned a {type(logits).__name__}; give a model that returns logits "
            "alone, e.g. a wrapper whose forward picks them."
        )
    if y.dim() != 1:
        raise ValueError(
            f"labels have shape {tuple(y.shape)}; legal: one integer per point, shape [B]. Of "
            "one-hot labels give y.argmax(1)."
        )
    if logits.dim() != 2 or len(logits) != len(y):
        raise ValueError(
            f"the model returned shape {tuple(logits.shape)} for {len(y)} labels; legal: "
            "[batch, classes]."
        )
    if logits.shape[1] < 2:
        raise ValueError(
            "the model returned one output per point; legal: one for each of two classes or more. "
            "Of a single logit z make two, torch.cat([-z, z], 1)."
        )
    if y.device != logits.device:
        raise ValueError(
            f"labels are on {y.device} and the model's outputs on {logits.device}; give y.to("
            f"{str(logits.device)!r})."
        )
    if y.is_floating_point():
        raise ValueError(
            f"labels are {y.dtype}; legal: integers 0 to {logits.shape[1] - 1}, the model has "
            f"{logits.shape[1]} classes. Give y.long()."
        )
    whole = y.long()
    if not bool(((whole >= 0) & (whole < logits.shape[1])).all()):
        least, most = (int(end) for end in whole.aminmax())
        raise ValueError(
            f"labels are {y.dtype} from {least} to {most}; legal: integers 0 "
            f"to {logits.shape[1] - 1}, the model has {logits.shape[1]} classes."
        )
    return logits
