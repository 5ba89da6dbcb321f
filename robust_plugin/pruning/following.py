"""Following optimizers: what a pruner does before and after each of their steps.

The masks change nowhere else while a network trains. ``optimizer_hook.py`` has the hooks and the
checks of optimizers.
"""

from __future__ import annotations

from dataclasses import replace

from robust_plugin.budget.control import PhaseSteps
from robust_plugin.masks.attach import check_layers, write_zeros
from robust_plugin.pruning import optimizer_hook, phases
from robust_plugin.pruning.optimizer_hook import check_holds, innermost_optimizers
from robust_plugin.pruning.pruner_state import PrunerState
from robust_plugin.runtime.distributed import check_ranks


def follow(
    state: PrunerState, optimizer: object, *, epochs: int | None, steps_per_epoch: int | None
) -> None:
    """From now on, update density, rates and masks after each step (see ``Pruner.follow``)."""
    phases.check_follows(state.phase, state.order)
    optimizers = innermost_optimizers(optimizer)
    check_holds(optimizers, state.model)
    lengths = optimizer_hook.check_lengths(
        epochs, steps_per_epoch, required=state.phase == "shrink" or "rates" in state.learn
    )
    optimizer_hook.warn_of_decay(
        optimizers, [mask.rate for mask in state.masks if mask.rate is not None]
    )
    steps = PhaseSteps(state.steps.step, *lengths)
    if state.phase == "shrink":
        state.progress.shrink = steps
        before, after = _nothing, _after_shrink_step
    else:
        state.progress.prune = steps
        before, after = _before_prune_step, _after_prune_step
    state.following.start(
        optimizers, before_step=lambda _: before(state), after_step=lambda: after(state)
    )
    state.expect_follow()
    for mask in state.masks:
        mask.unfollowed = False
    if state.phase == "prune":
        state.choose()  # the number of weights that learned rates keep depends on the lengths


def _nothing(state: PrunerState) -> None:
    """Do nothing before a step."""


def _before_prune_step(state: PrunerState) -> None:
    """Check the loaded state, and drop gradients of what the phase does not train."""
    state.check_shrunk()
    # A loop may have switched requires_grad of everything off and on again.
    phases.drop_other_gradients(state.model, state.trained)


def _after_shrink_step(state: PrunerState) -> None:
    """Count a step of the shrink phase; choose the masks anew if the density has fallen."""
    before, now = replace(state.steps), state.steps
    now.step += 1
    if now.step == 1:
        check_layers(state.model, state.places)
    if state.attached.cuts(before, now, state.budget.density):
        state.attached.shrink(now.progress, state.budget.density)
        write_zeros(state.model)
    state.record()


def _after_prune_step(state: PrunerState) -> None:
    """Count a step of the prune phase, and move rates and masks."""
    state.steps.step += 1
    if state.steps.step == 1:
        check_ranks(state.model)
        optimizer_hook.warn_of_first_step(
            state.masks,
            hinge=state.attached.kind == "hinge",
            penalised=state.penalised,
        )
        check_layers(state.model, state.places)
    state.control.after_step(state.masks, state.steps)
    state.choose()
    state.record()
