"""Settings that a pruner saves in its state, and checks before a pruner loads a state."""

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
    schedule: str,
    last_cut: float | None,
) -> dict[str, Any]:
    """Return the settings that must be equal in a saved state and in the pruner that loads it.

    They are a dict of plain JSON data.

    Args:
        groups: the groups of weights or channels that are pruned.
        budget: the budget of these groups; its density and total are not among the settings.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
        pattern: n:m pattern of the masks; None for unstructured masks.
        control: how learned rates meet the budget, "held" or "hinge"; None if they are not learned.
        gamma_step: growth per epoch of the factor of the hinge penalty; None if rates are not
            learned.
        round_to: number of channels per block that is kept or removed as a whole.
        schedule: text that stands for the schedule of the shrink phase.
        last_cut: share of the shrunk network that the learned last cut keeps; None if nothing is
            learned or there is no shrink phase.
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
        "schedule": schedule,
        "last_cut": last_cut,
    }
    if budget.coupled:
        settings["products"] = [list(product) for product in budget.products]
        settings["fixed"] = budget.fixed
    return settings


def refuse_foreign(state: object) -> None:
    """Raise a ValueError unless ``state`` has the entries of a pruner's state.

    Args:
        state: legally what ``Pruner.state_dict`` returned.
    """
    needed = (
        "settings", "density", "phase", "shrink", "prune", "control", "settled", "shrunk", "most",
        "updated", "finetune_steps",
    )  # fmt: skip
    if not isinstance(state, Mapping) or any(key not in state for key in needed):
        raise ValueError(
            f"this is no state of a pruner, which holds {', '.join(needed)}; give what "
            "pruner.state_dict() returned. That of a model goes to model.load_state_dict."
        )


def refuse_other(state: Mapping[str, Any], settings: Mapping[str, Any], density: float) -> None:
    """Raise a ValueError unless a saved state is of a pruner with these settings.

    Args:
        state: what ``Pruner.state_dict`` returned.
        settings: the settings of the pruner that is to load the state.
        density: the density of that pruner's budget. It is compared only if the pruner learns
            scores or rates; a pruner that learns nothing takes the density of the state.

    Raises:
        ValueError: naming the settings that differ.
    """
    # States that were written before round_to existed have no entry for it; its value was 1.
    saved, ours = {"round_to": 1, **state["settings"]}, dict(settings)
    if ours["learn"]:
        saved["density"], ours["density"] = state["density"], density
    differ = [key for key in ours if saved.get(key) != ours[key]]
    if differ:
        raise ValueError(
            "the state is of another pruner: "
            + "; ".join(f"{key} was {saved.get(key)}, here {ours[key]}" for key in differ)
        )


def refuse_ended(saved: str, phase: str) -> None:
    """Raise a ValueError if only one of a saved state and the pruner to load it is finalized.

    Args:
        saved: the phase in which the state was saved.
        phase: the present phase of the pruner.

    Raises:
        ValueError: saying what to load instead.
    """
    if saved == "finalized" != phase:
        raise ValueError(
            "the state was taken after finalize, when the masks were gone, and this pruner has "
            "its masks; load that network into a model without a pruner, or load a state that was "
            "saved before finalize."
        )
    if phase == "finalized" != saved:
        raise ValueError(
            f"the state was taken in phase {saved!r}, and this pruner is finalized: its masks are "
            "gone. Load it into a pruner that is attached to the unpruned network."
        )
