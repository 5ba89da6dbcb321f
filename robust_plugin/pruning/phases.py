"""The phases of a Pruner: their order, what each of them trains, and what is allowed in each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import nn

from robust_plugin.budget.budget import Budget
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.prunable import norm_parameters

Learnable = Literal["scores", "rates"]
PhaseName = Literal["shrink", "prune", "finetune"]
Phase = Literal["attached", "shrink", "prune", "finetune", "finalized"]


def phase_order(*, shrinks: bool, learns: bool) -> tuple[PhaseName, ...]:
    """Return the phases of a pruner in order.

    Args:
        shrinks: whether its density falls along a schedule, in a phase of its own.
        learns: whether it learns scores or rates.
    """
    order: tuple[PhaseName, ...] = ("shrink", "prune", "finetune")
    has = {"shrink": shrinks, "prune": learns, "finetune": True}
    return tuple(name for name in order if has[name])


def check_order(
    current: Phase,
    wanted: str,
    *,
    order: Sequence[PhaseName],
    shrunk: bool,
    learned: bool,
    name: str,
) -> None:
    """Raise an error unless ``wanted`` may follow ``current``.

    Args:
        current: the phase that the pruner is in.
        wanted: the phase that is to begin.
        order: the phases of the pruner.
        shrunk: whether it has begun to shrink, or need not, as in a state that was loaded.
        learned: whether something was learned already, as in a state that was loaded.
        name: name of the pruner in error messages.

    Raises:
        ValueError: naming the wanted phase and what is legal.
    """
    legal = ", then ".join(map(repr, order))
    if wanted not in ("shrink", "prune", "finetune"):
        raise ValueError(f"phase is {wanted!r}; legal: {legal}.")
    if wanted == "shrink" and wanted not in order:
        raise ValueError(
            f"{name} prunes at once, so it has no shrink phase; attach it with "
            f"schedule='geometric', or start at set_phase({order[0]!r})."
        )
    if wanted == "prune" and wanted not in order:
        raise ValueError(
            f"{name} learns nothing, so it has no prune phase; start at set_phase({order[0]!r})."
        )
    places = ["attached", *order, "finalized"]
    if current == "finalized" or places.index(wanted) < places.index(current):
        raise ValueError(
            f"phase {wanted!r} cannot follow {current!r}; the order is {', '.join(order)}, "
            "finalize."
        )
    if current == "attached" and wanted != "shrink" and not shrunk:
        raise ValueError(
            f"{name} has not shrunk yet: its schedule lowers the density while weights train; "
            "begin with set_phase('shrink'), or attach it without a schedule."
        )
    skips = wanted == "finetune" and current in ("attached", "shrink") and "prune" in order
    if skips and not learned:
        raise ValueError(_nothing_learned(name))


def train_only(
    model: nn.Module,
    masks: Sequence[GroupMask],
    phase: PhaseName,
    learn: Collection[Learnable],
    frozen: Collection[nn.Parameter],
) -> list[dict[str, Any]]:
    """Set requires_grad for the parameters that a phase trains, and clear it for all others.

    The prune phase trains scores, rate logits and the normalisation layers; the shrink and the
    finetune phase train everything except scores and rate logits.

    Args:
        model: the masked network.
        masks: the masks of the network, with scores and rate logits.
        phase: the phase that begins.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
        frozen: parameters that stay frozen in every phase.

    Returns:
        list: param groups for an optimizer, with the trained parameters. In the prune phase, the
        first one holds scores and rate logits, and sets weight decay to 0.
    """
    norms = set(norm_parameters(model))
    own = {parameter for mask in masks for parameter in mask.parameters()}
    for parameter in model.parameters():
        if parameter not in own and parameter not in frozen:
            parameter.requires_grad_(phase != "prune" or parameter in norms)
    scores = [mask.scores for mask in masks if "scores" in learn]
    rates = [mask.rate for mask in masks if mask.rate is not None]
    for learned in (*scores, *rates):
        learned.requires_grad_(phase == "prune")
    for mask in masks:
        mask.learning = phase == "prune"
        mask.fixed = phase != "prune"
        mask.waits = ""
    others = [p for p in model.parameters() if p.requires_grad and p not in own]
    groups: list[dict[str, Any]] = [{"params": others}]
    if phase == "prune":
        # What the phase is about comes first: many loops set the learning rate of group 0 alone.
        groups.insert(0, {"params": [*scores, *rates], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def drop_other_gradients(model: nn.Module, trained: Collection[nn.Parameter]) -> None:
    """Set the gradients of parameters that the prune phase does not train to None.

    They have some if a loop switches requires_grad of everything off and on again around an attack.
    An optimizer of ``model.parameters()`` would train them.

    Args:
        model: the masked network.
        trained: the parameters that the phase trains.
    """
    for parameter in model.parameters():
        if parameter.grad is not None and parameter not in trained:
            parameter.grad = None


def check_follows(phase: Phase, order: Sequence[PhaseName]) -> None:
    """Raise a ValueError if ``Pruner.follow`` is called in a phase whose masks do not change.

    Args:
        phase: the phase that the pruner is in.
        order: the phases of the pruner.
    """
    if phase in ("shrink", "prune"):
        return
    fix = f"call set_phase({order[0]!r}) first."
    if phase != "attached" or order[0] == "finetune":
        fix = "leave it out."
    raise ValueError(
        f"follow is for the shrink and the prune phase, and the phase is {phase!r}; {fix} "
        "Fine-tuning needs no follow."
    )


def check_prunes_further(phase: Phase, *, fixed: bool, name: str) -> None:
    """Raise an error unless ``Pruner.set_density`` may lower the density of a pruner.

    Args:
        phase: the phase that the pruner is in.
        fixed: True if the pruner learns something, has a schedule or an n:m pattern, and so cannot
            change its density.
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
            "is MagnitudePruner's, without a pattern and a schedule."
        )


def check_lower(density: float, wanted: Budget, present: Budget) -> None:
    """Raise an error if a new budget allows more than the present one.

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


def check_finalizes(phase: Phase, *, learns: bool, learned: bool, name: str) -> None:
    """Raise a ValueError if a pruner in this phase cannot be finalized.

    Args:
        phase: the phase that the pruner is in; "finalized" is illegal.
        learns: whether the pruner learns scores or layer densities; then "attached" and "shrink"
            are illegal too.
        learned: whether something was learned already, as in a state that was loaded.
        name: name of the pruner in error messages.
    """
    if phase == "finalized":
        raise ValueError("the pruner is finalized already.")
    if phase in ("attached", "shrink") and learns and not learned:
        raise ValueError(_nothing_learned(name))


def check_learned(name: str, *, moved: bool, follows: bool, loaded: bool) -> None:
    """Raise a ValueError if a prune phase that learns ends before anything was learned.

    Args:
        name: name of the pruner in error messages.
        moved: whether a followed step was made, in this process or before the state was saved, or
            the user has called ``update_masks``.
        follows: whether an optimizer is followed.
        loaded: whether the last state that was loaded is from before the first step.
    """
    if moved:
        return
    cause = "the followed optimizer has made no step" if follows else "no optimizer is followed"
    if loaded:
        cause = "the state that was loaded last is from before its first step"
    raise ValueError(
        f"{name} has learned nothing in its prune phase: {cause}. Call pruner.follow(optimizer, "
        "...) with an optimizer of what set_phase('prune') returned, and then loss.backward() and "
        "optimizer.step() for each batch. If you have written scores by hand, call "
        "pruner.update_masks(); to prune by magnitude, take MagnitudePruner."
    )


def check_trains(phase: Phase, order: Sequence[PhaseName]) -> None:
    """Raise a ValueError if a penalty is asked for before the pruner has begun to train.

    Args:
        phase: the phase that the pruner is in.
        order: the phases of the pruner.
    """
    if phase == "attached" and "prune" in order:
        raise ValueError(
            "budget_penalty is for training, and the phase is 'attached', in which nothing is "
            f"learned; call set_phase({order[0]!r}) first, and build the optimizer from what it "
            "returns."
        )


def _nothing_learned(name: str) -> str:
    """Return the error message for a learning pruner that skips its prune phase."""
    return f"{name} has learned nothing yet; run the phase 'prune' first, or take MagnitudePruner."
