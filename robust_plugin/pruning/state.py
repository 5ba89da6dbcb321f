"""What a pruner's state says of its settings, so that no other pruner continues from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from robust_plugin.budget.budget import Budget
from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern


def settings_of(
    groups: Sequence[Group],
    budget: Budget,
    *,
    learn: Collection[str],
    pattern: Pattern | None,
    control: str | None,
    gamma_step: float | None,
    round_to: int,
) -> dict[str, Any]:
    """Return the settings that a state and its pruner have to share; plain JSON.

    Args:
        groups: what is pruned.
        budget: over them; its density and total are not among the settings.
        learn: what the prune phase learns.
        pattern: of n:m masks.
        control: of learned rates; None where they are not learned.
        gamma_step: of the control; likewise.
        round_to: of channels.
    """
    settings: dict[str, Any] = {
        "learn": sorted(learn),
        "groups": [group.name for group in groups],
        "sizes": list(budget.sizes),
        "costs": list(budget.costs),
        "pattern": list(pattern) if pattern else None,
        "control": control,
        "gamma_step": gamma_step,
        "round_to": round_to,
    }
    if budget.coupled:
        settings["products"] = [list(product) for product in budget.products]
        settings["fixed"] = budget.fixed
    return settings


def refuse_other(state: Mapping[str, Any], settings: Mapping[str, Any], density: float) -> None:
    """Raise unless a state is of a pruner with these settings.

    Args:
        state: what ``Pruner.state_dict`` returned.
        settings: of the pruner that is to continue from it.
        density: of its budget, which matters where something is learned: a pruner that learns
            nothing takes over the state's.

    Raises:
        ValueError: naming what differs.
    """
    saved, ours = {"round_to": 1, **state["settings"]}, dict(settings)  # 1 before it was new
    if ours["learn"]:
        saved["density"], ours["density"] = state["density"], density
    differ = [key for key in ours if saved.get(key) != ours[key]]
    if differ:
        raise ValueError(
            "the state is of another pruner: "
            + "; ".join(f"{key} was {saved.get(key)}, here {ours[key]}" for key in differ)
        )


def refuse_ended(saved: str, phase: str) -> None:
    """Raise if a state was taken after finalize and the pruner still has masks, or the reverse.

    Args:
        saved: the phase in which the state was taken.
        phase: the pruner's.

    Raises:
        ValueError: saying what to load instead.
    """
    if saved == "finalized" != phase:
        raise ValueError(
            "the state was taken after finalize, when the masks were gone, and this pruner has "
            "its masks; load that network into a model without a pruner, or a state of before."
        )
    if phase == "finalized" != saved:
        raise ValueError(
            f"the state was taken in phase {saved!r}, and this pruner is finalized: its masks are "
            "gone. Load it into a pruner that is attached to the unpruned network."
        )
