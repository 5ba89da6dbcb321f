"""The phases of a Pruner: their order, and what each of them trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import nn

from robust_plugin.attachment import GroupMask
from robust_plugin.prunable import norm_parameters

Learnable = Literal["scores", "rates"]
Phase = Literal["attached", "prune", "finetune", "finalized"]


def check_order(current: Phase, wanted: str, *, learns: bool, name: str) -> None:
    """Raise unless a phase may follow another: prune, finetune, finalize.

    Args:
        current: the phase so far.
        wanted: the next one.
        learns: whether the pruner learns anything.
        name: what errors call it.

    Raises:
        ValueError: naming the phase and the order.
    """
    if wanted not in ("prune", "finetune"):
        raise ValueError(f"phase is {wanted!r}; legal: 'prune', then 'finetune'.")
    if wanted == "prune" and not learns:
        raise ValueError(
            f"{name} learns nothing, so it has no prune phase; start at set_phase('finetune')."
        )
    if current == "finalized" or (wanted == "prune" and current == "finetune"):
        raise ValueError(
            f"phase {wanted!r} cannot follow {current!r}; the order is prune, finetune, finalize."
        )
    if wanted == "finetune" and current == "attached" and learns:
        raise ValueError(nothing_learned(name))


def nothing_learned(name: str) -> str:
    """Return what is wrong with a learning pruner that skips its prune phase."""
    return f"{name} has learned nothing yet; run the phase 'prune' first, or take MagnitudePruner."


def train_only(
    model: nn.Module,
    masks: Sequence[GroupMask],
    phase: Literal["prune", "finetune"],
    learn: Collection[Learnable],
    frozen: Collection[nn.Parameter],
) -> list[dict[str, Any]]:
    """Freeze what a phase does not train, and return optimizer param groups of the rest.

    Prune: scores, rates and norms; finetune: everything but scores and rates. Scores and rates
    get no weight decay.

    Args:
        model: the masked network.
        masks: with its scores and rates.
        phase: what begins.
        learn: what the prune phase learns.
        frozen: parameters that stay frozen in any phase.
    """
    norms = set(norm_parameters(model))
    own = {parameter for mask in masks for parameter in mask.parameters()}
    for parameter in model.parameters():
        if parameter not in own and parameter not in frozen:
            parameter.requires_grad_(phase == "finetune" or parameter in norms)
    scores = [mask.scores for mask in masks if "scores" in learn]
    rates = [mask.rate for mask in masks if mask.rate is not None]
    for parameter in (*scores, *rates):
        parameter.requires_grad_(phase == "prune")
    others = [p for p in model.parameters() if p.requires_grad and p not in own]
    groups: list[dict[str, Any]] = [{"params": others}]
    if phase == "prune":
        groups += [{"params": learned, "weight_decay": 0.0} for learned in (scores, rates)]
    return [group for group in groups if group["params"]]
