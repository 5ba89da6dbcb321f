"""Following an optimizer: the hook that chooses masks after its steps, and checks of optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.control import Schedule


class Following:
    """A hook on an optimizer: in the prune phase it moves the masks, afterwards it only checks."""

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._followed: torch.optim.Optimizer | None = None

    @property
    def active(self) -> bool:
        """Whether an optimizer is followed."""
        return self._followed is not None

    def start(self, optimizer: torch.optim.Optimizer, after_step: Callable[[], None]) -> None:
        """Call ``after_step`` after each step of an optimizer; follow no other optimizer."""

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not step_was_skipped(optimizer):
                after_step()

        self._remove()
        self._followed = optimizer
        self._hook = optimizer.register_step_post_hook(hook)

    def end(self, before_step: Callable[[torch.optim.Optimizer], None]) -> None:
        """Stop following the optimizer; from now on call ``before_step`` before each step of it.

        An optimizer of the prune phase that is used in the next phase would silently train only
        the parameters that both phases train. ``before_step`` can raise an error there.
        """
        followed, self._followed = self._followed, None
        self._remove()
        if followed is not None:
            self._hook = followed.register_step_pre_hook(lambda own, *_: before_step(own))

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise unless the optimizer holds every parameter that the phase trains.

    Raises:
        TypeError: if ``optimizer`` is no optimizer.
        ValueError: naming a parameter that the optimizer lacks.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise ValueError(
            f"the optimizer lacks {len(missing)} parameters of this phase, such as {missing[0]!r}; "
            "build it from what set_phase returned."
        )


def check_lengths(
    epochs: int | None, steps_per_epoch: int | None, *, required: bool
) -> tuple[int, int]:
    """Return the lengths of a prune phase, 0 for a length that is not given.

    Args:
        epochs: number of epochs, or None.
        steps_per_epoch: number of optimizer steps per epoch, or None.
        required: whether both lengths are needed, because learned rates move on a schedule.

    Raises:
        ValueError: for a length that is no whole number, or one that is required and missing.
    """
    lengths = (epochs or 0, steps_per_epoch or 0)
    if not all(isinstance(length, int) for length in lengths):
        raise ValueError(
            f"epochs is {epochs!r} and steps_per_epoch is {steps_per_epoch!r}; legal: whole "
            "numbers."
        )
    if required and min(lengths) < 1:
        raise ValueError(
            f"epochs is {epochs} and steps_per_epoch is {steps_per_epoch}; learned rates move "
            "on a schedule: give both, at least 1."
        )
    return lengths


def warn_of_decay(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> None:
    """Warn if the optimizer applies weight decay to rates, which pulls all of them to one half."""
    learned = {id(rate) for rate in rates}
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0)
        if decay and any(id(parameter) in learned for parameter in group["params"]):
            warnings.warn(
                f"the optimizer decays the rates by {decay}, which pulls every layer to half of "
                "its weights; build it from what set_phase returned, which exempts them.",
                stacklevel=3,
            )


def warn_of_cut(share: float, budget: Budget, schedule: Schedule) -> None:
    """Warn if learned rates end more than 1 % above the budget, so that the rest is cut at once.

    Args:
        share: the share that the rates ask for at the end of the prune phase.
        budget: the target.
        schedule: where the prune phase has ended.
    """
    if share > 1.01 * budget.total / budget.full:
        warnings.warn(
            f"the rates ended at {share:.4g}, the budget is {budget.density:.4g}, at step "
            f"{schedule.step} of {schedule.steps}; the rest is cut at once. follow() "
            "counts optimizer steps, not batches; the hinge may need more of them.",
            stacklevel=4,  # this function, Pruner._settle, Pruner.set_phase, the user's line
        )


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a GradScaler made this step of a fused optimizer do nothing.

    On such a step a GradScaler does not call other optimizers at all; fused ones look at
    ``found_inf`` themselves.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)
