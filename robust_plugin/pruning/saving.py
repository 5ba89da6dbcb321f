"""The state of a pruner as plain data: how it is saved, and how a pruner continues from it.

A state comes back in two ways: with ``Pruner.load_state_dict``, or inside the state_dict of the
network, which loops of others save and load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robust_plugin.budget.control import FixedRates
from robust_plugin.masks.attach import write_zeros
from robust_plugin.pruning.pruner_state import PrunerState
from robust_plugin.pruning.state import refuse_ended, refuse_foreign, refuse_other


def state_of(state: PrunerState) -> dict[str, Any]:
    """Return what resuming needs besides the network's own state_dict, as plain JSON data."""
    return {
        "settings": dict(state.attached.settings),
        "density": state.budget.density,
        "phase": state.phase,
        "control": state.control.state(),
        **state.progress.state(),
    }


def check_saved(state: PrunerState, saved: Mapping[str, Any]) -> None:
    """Raise a ValueError unless ``load`` can load a saved state (see ``Pruner.check_state``)."""
    refuse_foreign(saved)
    refuse_other(saved, state.attached.settings, state.budget.density)
    refuse_ended(saved["phase"], state.phase)


def prepare(state: PrunerState, saved: Mapping[str, Any]) -> None:
    """Prepare for the network's state that comes with a pruner's state, and is loaded first.

    A network's state that is loaded alone in fine-tuning is fitted to the budget (``after_load``).
    One that comes with the state of an earlier phase must stay as it is.

    Args:
        state: the state of the pruner.
        saved: what ``state_of`` returned, which is loaded next.
    """
    if saved["phase"] != state.phase:
        state.phase = "attached"


def load(state: PrunerState, saved: Mapping[str, Any]) -> None:
    """Continue from a saved state; the network's state_dict is loaded by now.

    Args:
        state: the state of the pruner.
        saved: what ``state_of`` returned.
    """
    check_saved(state, saved)
    _take_density(state, saved["density"])
    if saved["phase"] != state.phase:
        state.following.end(state.before_later_step)
    state.progress = state.no_progress()
    state.progress.load(saved)
    state.phase = saved["phase"]
    _load_control(state, saved["control"])
    for mask in state.masks:
        mask.waits = state.waits_for if state.phase == "attached" else ""
    if state.phase in ("shrink", "prune", "finetune"):
        state.begin(state.phase)


def after_load(state: PrunerState) -> None:
    """Continue from the state of the network that was just loaded by anybody."""
    first, dense = state.masks[0], all(mask.was_dense for mask in state.masks)
    if dense and state.phase == "attached" and not state.progress.has_learned:
        state.attached.compute_anew(state.budget.density)
        state.record()
    if dense:
        return
    if first.budget:
        _take_density(state, first.budget["density"])
    if first.progress:
        state.progress.load(first.progress)
        _load_control(state, first.progress["control"])
        if state.phase == "finetune":  # the best state of an earlier phase, say
            state.settle()
            write_zeros(state.model)


def _take_density(state: PrunerState, density: float) -> None:
    """Take over the density of a saved state, as a pruner does that learns nothing.

    Raises:
        ValueError: if the rates or the pattern of the pruner imply another density.
    """
    if density == state.budget.density:
        return
    if state.attached.density is None:
        raise ValueError(
            f"the state keeps {density:g}, and the rates or the pattern of this pruner keep "
            f"{state.budget.density:g}; attach a pruner with those of the state."
        )
    state.budget = state.attached.plan(density).budget


def _load_control(state: PrunerState, saved: Mapping[str, Any]) -> None:
    """Continue to control the rates from a saved state, after the progress was loaded."""
    if state.learn:
        state.budget, control = state.attached.for_last_cut(state.progress.most)
        state.control = FixedRates() if state.progress.settled else control
    if saved and state.control.state():
        state.control.load(dict(saved))
