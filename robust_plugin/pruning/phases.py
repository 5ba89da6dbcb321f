"""The phases of a Pruner: their order, what each of them trains, and what is legal in each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import nn

from robust_plugin.budget.budget import Budget
from robust_plugin.masks.attach import GroupMask
from robust_plugin.masks.prunable import norm_parameters

Learnable = Literal["scores", "rates"]
Phase = Literal["attached", "prune", "finetune", "finalized"]


def check_order(current: Phase, wanted: str, *, learns: bool, name: str) -> None:
    """Raise unless a phase may follow another; the order is prune, finetune, finalize.

    Args:
        current: the phase that the pruner is in.
        wanted: the phase that is to begin.
        learns: whether the pruner learns anything.
        name: name of the pruner in error messages.

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
        raise ValueError(_nothing_learned(name))


def train_only(
    model: nn.Module,
    masks: Sequence[GroupMask],
    phase: Literal["prune", "finetune"],
    learn: Collection[Learnable],
    frozen: Collection[nn.Parameter],
) -> list[dict[str, Any]]:
    """Freeze what a phase does not train, and return optimizer param groups of the rest.

    The prune phase trains scores, rates and norms; the finetune phase trains everything except
    scores and rates. Scores and rates get no weight decay.

    Args:
        model: the masked network.
        masks: the masks of the network, with scores and rates.
        phase: the phase that begins.
        learn: what the prune phase learns.
        frozen: parameters that stay frozen in every phase.
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


def check_follows(phase: Phase) -> None:
    """Raise a ValueError unless a pruner in this phase may follow an optimizer."""
    if phase != "prune":
        raise ValueError(
            f"follow is for the prune phase, and the phase is {phase!r}; call "
            "set_phase('prune') first. Fine-tuning needs no follow."
        )


def check_prunes_further(phase: Phase, *, fixed: bool, name: str) -> None:
    """Raise unless a pruner may change its density on the way.

    Args:
        phase: the phase that the pruner is in.
        fixed: whether the pruner learns something or has a pattern, so that its density is fixed.
        name: name of the pruner in error messages.

    Raises:
        ValueError: saying what to use instead.
    """
    if phase == "finalized":
        raise ValueError(
            "the pruner is finalized, so that no mask is left to change; attach a new "
            "MagnitudePruner to prune further."
        )
    if fixed:
        raise ValueError(
            f"{name} cannot change its density on the way; iterative pruning "
            "is MagnitudePruner's, without a pattern."
        )


def check_lower(density: float, wanted: Budget, present: Budget) -> None:
    """Raise unless a new budget keeps at most what the present one keeps.

    Args:
        density: the density that was asked for.
        wanted: the budget of that density.
        present: the budget that the masks meet now.

    Raises:
        ValueError: naming the largest legal density.
    """
    if wanted.total > present.total:
        raise ValueError(
            f"density is {density}, and {present.density:g} is kept: weights that are "
            "pruned are zero, and no magnitude says which of them should come back. Legal: at "
            f"most {present.density:g}; to keep more, attach a new pruner to the network "
            "as it was."
        )


def check_finalizes(phase: Phase, *, learns: bool, name: str) -> None:
    """Raise a ValueError if a pruner is finalized already, or should learn and has not."""
    if phase == "finalized":
        raise ValueError("the pruner is finalized already.")
    if phase == "attached" and learns:
        raise ValueError(_nothing_learned(name))


def _nothing_learned(name: str) -> str:
    """Return the error message for a learning pruner that skips its prune phase."""
    return f"{name} has learned nothing yet; run the phase 'prune' first, or take MagnitudePruner."
