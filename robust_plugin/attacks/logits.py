"""Logits of clean inputs, checked, with one sentence for inputs that a network cannot take."""

from __future__ import annotations

from torch import Tensor, nn

from robust_plugin.guard import check_logits, naming_inputs


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
