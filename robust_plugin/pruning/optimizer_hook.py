"""The hook that updates masks after each step of an optimizer, and checks of optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.control import Schedule
from robust_plugin.masks.attach import GroupMask
from robust_plugin.runtime.calls import user_level
from robust_plugin.runtime.values import is_whole


class Following:
    """Hook on an optimizer of the prune phase.

    From ``start`` to ``end`` it calls a function after each step, to update the masks. From ``end``
    on it calls a check before each step.
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._followed: torch.optim.Optimizer | None = None

    @property
    def active(self) -> bool:
        """Whether a function is called after each step of an optimizer."""
        return self._followed is not None

    def start(self, optimizer: torch.optim.Optimizer, after_step: Callable[[], None]) -> None:
        """From now on call ``after_step`` after each step of ``optimizer``, and of no other one.

        A step that a GradScaler skips does not count as a step.
        """

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not step_was_skipped(optimizer):
                after_step()

        self._remove()
        former = self._followed
        if former is not None and former is not optimizer:
            former.register_step_pre_hook(self._warn_of_former)
        self._followed = optimizer
        self._hook = optimizer.register_step_post_hook(hook)

    def end(self, before_step: Callable[[torch.optim.Optimizer], None]) -> None:
        """End the calls after steps; from now on call ``before_step`` before each step instead.

        ``before_step`` gets the optimizer that was given to ``start``, and can raise an error: an
        optimizer of the prune phase that is used in the next phase would silently train only the
        parameters that both phases train.
        """
        followed, self._followed = self._followed, None
        self._remove()
        if followed is not None:
            self._hook = followed.register_step_pre_hook(lambda own, *_: before_step(own))

    def _warn_of_former(self, former: torch.optim.Optimizer, *_: Any) -> None:
        """Warn if an optimizer that is followed no more makes a step while another is followed."""
        if self._followed not in (None, former):
            warnings.warn(
                "this optimizer was followed before another one was: its steps update no masks any "
                "more. Put all parameters into one optimizer, or follow the one that steps last.",
                stacklevel=user_level(),
            )

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise an error unless the optimizer holds every parameter of the model that requires grad.

    Raises:
        TypeError: if ``optimizer`` is not a torch.optim.Optimizer.
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
    """Return (epochs, steps_per_epoch) of a prune phase, with 0 for None.

    Args:
        epochs: number of epochs; None if not given.
        steps_per_epoch: number of optimizer steps per epoch; None if not given.
        required: whether both must be given, which is so if layer densities are learned.

    Raises:
        ValueError: if a length is no whole number, or one is required and missing or below 1.
    """
    lengths = (epochs or 0, steps_per_epoch or 0)
    if not all(is_whole(length) for length in lengths):
        raise ValueError(
            f"epochs is {epochs!r} and steps_per_epoch is {steps_per_epoch!r}; legal: whole "
            "numbers, such as len(loader) steps."
        )
    if required and min(lengths) < 1 or min(lengths) < 0:
        raise ValueError(
            f"epochs is {epochs} and steps_per_epoch is {steps_per_epoch}; learned rates move "
            "on a schedule: give both, at least 1."
        )
    return lengths


def warn_of_first_step(masks: Sequence[GroupMask], *, hinge: bool, penalised: bool) -> None:
    """Warn if the first step of the prune phase cannot have learned what it should.

    Args:
        masks: the masks with the scores and rate logits that are learned.
        hinge: whether layer densities are learned with the penalty of the budget.
        penalised: whether ``Pruner.budget_penalty`` was called.
    """
    learned = [p for mask in masks for p in mask.parameters() if p.requires_grad]
    if all(parameter.grad is None for parameter in learned):
        warnings.warn(
            "the optimizer made a step, and scores and rates have no gradient, so that the masks "
            "stay as they are; call loss.backward() before optimizer.step(), on a loss of the "
            "model that the pruner is attached to.",
            stacklevel=user_level(),
        )
    if hinge and not penalised:
        warnings.warn(
            "control='hinge' meets the budget by a penalty, and budget_penalty() was not called; "
            "train on loss + pruner.budget_penalty(), or take control='held'.",
            stacklevel=user_level(),
        )


def warn_of_decay(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> None:
    """Warn if the optimizer applies weight decay to rate logits.

    It pulls the logits to 0 and thus the densities of all layers to about one half.

    Args:
        optimizer: optimizer of the prune phase.
        rates: the logits of the learned layer densities.
    """
    learned = {id(rate) for rate in rates}
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0)
        if decay and any(id(parameter) in learned for parameter in group["params"]):
            warnings.warn(
                f"the optimizer decays the rates by {decay}, which pulls every layer to half of "
                "its weights; build it from what set_phase returned, which exempts them.",
                stacklevel=user_level(),
            )


def warn_of_cut(share: float, budget: Budget, schedule: Schedule) -> None:
    """Warn if learned layer densities end the prune phase more than 1 % above the budget.

    The weights or channels above the budget are then pruned at once, without training.

    Args:
        share: share of the dense network's cost that the learned densities keep.
        budget: the budget that the prune phase should have reached.
        schedule: number of optimizer steps done, and planned length of the phase.
    """
    if share > 1.01 * budget.total / budget.full:
        warnings.warn(
            f"the rates ended at {share:.4g}, the budget is {budget.density:.4g}, at step "
            f"{schedule.step} of {schedule.steps}; the rest is cut at once. follow() "
            "counts optimizer steps, not batches; the hinge may need more of them.",
            stacklevel=user_level(),
        )


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a GradScaler made the present step of a fused optimizer change nothing.

    If gradients overflow, a GradScaler does not call ``step`` of other optimizers; it calls that of
    fused ones, which then do nothing because their attribute ``found_inf`` is set.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)
