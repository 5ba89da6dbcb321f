"""How learned layer densities are made to meet the budget during the prune phase.

A rate is the density of one group (the weights or channels with one mask, usually a layer). It is
learned through a logit r. ``HeldRates`` projects the logits onto the budget after every optimizer
step. ``HingeRates`` adds the penalty of the HARP paper to the loss instead. ``FixedRates`` is for
rates that are not learned. All three implement ``RateControl``, the interface that a pruner calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.density_logits import (
    densities,
    limited,
    rate_logit,
    rate_logits,
    set_logits,
)
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.runtime.values import is_number

Control = Literal["held", "hinge"]

# The budget reaches its target after this share of the phase. Scores and rates settle in the rest.
_ANNEAL_SHARE = 0.6

# How far gradients may move a rate logit over the whole phase: 1 is a factor of e in density. (On
# the digits with 1 % kept, a factor of 20 let the last layer keep a quarter of its weights, and
# accuracy was lower.)
_TRAVEL = 1.0

# Optimizer steps per epoch in the paper: 50,000 images in batches of 128.
_PAPER_STEPS = 391


@dataclass
class PhaseSteps:
    """Length of a phase in optimizer steps, and how much of it is done.

    Attributes:
        step: number of optimizer steps done so far.
        epochs: number of epochs of the phase, 0 before it is known.
        steps_per_epoch: number of optimizer steps per epoch, 0 before it is known.
    """

    step: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0

    @property
    def total(self) -> int:
        """The length of the phase in optimizer steps, 0 before it is known."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the phase that has passed, in [0, 1]; 0 before its length is known."""
        return min(1.0, self.step / self.total) if self.total else 0.0


class RateControl(Protocol):
    """Interface through which a Pruner changes layer densities (rates) during the prune phase.

    ``masks`` are the masks of all groups with their rate logits, and ``steps`` says how much of
    the phase is done.
    """

    def after_step(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> None:
        """Adjust the rate logits in ``masks`` after an optimizer step has changed them."""

    def counts(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> list[int]:
        """Return the number of weights or channels that each group keeps at this step."""

    def penalty(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> Tensor:
        """Return the penalty, a scalar, that is to be added to the training loss."""

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs to continue training later, as plain JSON data."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned earlier."""

    def resume(self, masks: Sequence[GroupMask]) -> None:
        """Begin anew from the logits in ``masks``, which were changed from outside."""


class FixedRates:
    """Layer densities that are not learned: every group keeps as many entries as at the start."""

    def after_step(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> None:
        """Do nothing: the rates are fixed."""

    def counts(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> list[int]:
        """Return the number of weights or channels that each mask keeps now."""
        return [mask.kept for mask in masks]

    def penalty(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> Tensor:
        """Return zero, a scalar: fixed rates need no penalty."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

    def resume(self, masks: Sequence[GroupMask]) -> None:
        """Do nothing: there are no logits."""


class HeldRates:
    """Learned layer densities that meet the budget exactly at every step, by a projection.

    After each optimizer step the logits r_l move along the gradient of the cost until
    sum_l c_l k_l n_l = K(t), where group l keeps the share k_l of its n_l entries, at cost c_l each
    (``Budget.hold``). Gradients of the loss can thus only move density from one group to another.
    Where training converges, they are proportional to the gradient of the cost: no exchange between
    two groups at equal cost would lower the loss. K(t) falls geometrically from the cost of the
    first densities to the total of ``budget``, over the first 60 % of the phase.

    Args:
        budget: budget to meet at the end of the phase.
        logits: rate logits at the start, float64, shape [groups].
        k_min: least density of a group.
    """

    def __init__(self, budget: Budget, logits: Tensor, k_min: float) -> None:
        self.budget, self.k_min = budget, k_min
        self._begin(logits)

    def _begin(self, logits: Tensor) -> None:
        self.start = max(self.budget.goal, self.budget.share(logits, self.k_min))
        self._previous = logits

    def total(self, steps: PhaseSteps) -> Budget:
        """Return the budget of this step, whose total is K(t)."""
        passed = min(1.0, steps.progress / _ANNEAL_SHARE)
        if passed == 1:
            return self.budget
        share = self.start * (self.budget.goal / self.start) ** passed
        return self.budget.rescaled(max(self.budget.total, share * self.budget.full))

    def after_step(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> None:
        """Limit the change of the logits since the last step, then project them onto the budget."""
        moved = limited(rate_logits(masks), self._previous, _TRAVEL / steps.total)
        self._previous = self.total(steps).hold(moved, self.k_min)
        set_logits(masks, self._previous)

    def counts(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> list[int]:
        """Return the number of entries that each group keeps, within the budget of this step."""
        return self.total(steps).round(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> Tensor:
        """Return zero, a scalar: the projection meets the budget without a penalty."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """Return where the budget started, and the logits that limit the next step."""
        return {"start": self.start, "previous": self._previous.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned earlier."""
        self.start = float(state["start"])
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)

    def resume(self, masks: Sequence[GroupMask]) -> None:
        """Begin anew from the logits in ``masks``, which were changed from outside."""
        self._begin(rate_logits(masks))


class HingeRates:
    """Learned layer densities with HARP's penalty gamma L_hw, gamma = (epoch + 1) gamma_step.

    L_hw is by how much the densities exceed the budget (``Budget.hinge``). This is HARP, equations
    4 and 5, with three changes, so that the densities meet the budget in prune phases of any
    length:

    - gamma_step is multiplied by 391 / (steps per epoch) if an epoch has fewer than 391 steps.
    - The paper freezes gamma for good once L_hw rounds to 0 at the end of an epoch, and the kept
      share then drifts above the target again (0.0959 -> 0.1019 for 0.1). Here gamma grows again
      after every later epoch that ends above the target.
    - Momentum can carry the kept share from above the target to below it, where the penalty is
      zero. Here such a step ends on the target.

    Args:
        budget: budget to meet at the end of the phase.
        logits: rate logits at the start, float64, shape [groups].
        k_min: least density of a group.
        gamma_step: growth of gamma per epoch of 391 optimizer steps: 0.01 in the paper, and 0.1 in
            the paper for ImageNet.

    Attributes:
        growths: gamma is this many times the scaled gamma_step; 1 at the start.
    """

    def __init__(
        self, budget: Budget, logits: Tensor, k_min: float, *, gamma_step: float = 0.01
    ) -> None:
        self.budget, self.k_min, self.gamma_step = budget, k_min, gamma_step
        self.growths = 1
        self._begin(logits)

    def _begin(self, logits: Tensor) -> None:
        self._previous, goal = logits, self.budget.goal
        start = max(goal, self.budget.share(logits, self.k_min))
        # The penalty has to move the logits from the start to the target. That distance is added to
        # what gradients may move them by.
        self._travel = _TRAVEL + rate_logit(start, self.k_min) - rate_logit(goal, self.k_min)

    def gamma(self, steps: PhaseSteps) -> float:
        """Return gamma, the factor of the penalty in the loss at this step."""
        scale = max(1.0, _PAPER_STEPS / steps.steps_per_epoch) if steps.total else 1.0
        return self.gamma_step * scale * self.growths

    def after_step(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> None:
        """Limit the change of the logits and stop them at the target.

        At the end of an epoch that keeps more than the target, gamma grows.
        """
        before = self._previous
        logits = limited(rate_logits(masks), before, self._travel / steps.total)
        if self._share(before) >= 1 > self._share(logits):
            logits = self.budget.hold(logits, self.k_min)
        set_logits(masks, logits)
        self._previous = logits
        if steps.step % steps.steps_per_epoch == 0:
            # If the sum is half a per cent or more above the target, L_hw does not round to 0.
            self.growths += round(self._share(logits) - 1, 2) > 0

    def _share(self, logits: Tensor) -> float:
        """Return the share of the cost that these logits keep, divided by the target share.

        A value within 1e-9 of 1 is returned as 1, because logits on the target have rounding
        errors.
        """
        found = self.budget.share(logits, self.k_min) / self.budget.goal
        return found if abs(found - 1) > 1e-9 else 1.0

    def counts(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> list[int]:
        """Return how many entries each group keeps by its rate; they may exceed the budget."""
        return self.budget.asked(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], steps: PhaseSteps) -> Tensor:
        """Return gamma L_hw, a scalar that is differentiable with respect to the rate logits."""
        return self.gamma(steps) * self.budget.hinge([mask.density() for mask in masks])

    def state(self) -> dict[str, Any]:
        """Return ``growths``, and what limits the next step: the logits after the last one."""
        return {
            "growths": self.growths,
            "travel": self._travel,
            "previous": self._previous.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned earlier."""
        self.growths = int(state["growths"])
        self._travel = float(state["travel"])
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)

    def resume(self, masks: Sequence[GroupMask]) -> None:
        """Begin anew from the logits in ``masks``, which were changed from outside."""
        self._begin(rate_logits(masks))


def control_of(
    control: Control | None, budget: Budget, masks: Sequence[GroupMask], gamma_step: float
) -> RateControl:
    """Return the object that makes learned layer densities (rates) meet a budget.

    Args:
        control: "held" for ``HeldRates``, "hinge" for ``HingeRates``, or None for ``FixedRates``,
            if the rates are not learned.
        budget: budget to meet at the end of the prune phase.
        masks: masks of all groups, with the rate logits to start from.
        gamma_step: growth per epoch of the factor of the "hinge" penalty (see ``HingeRates``).
    """
    if control is None:
        return FixedRates()
    logits, k_min = rate_logits(masks), masks[0].k_min
    if control == "held":
        return HeldRates(budget, logits, k_min)
    if not (is_number(gamma_step) and gamma_step >= 0):
        raise ValueError(f"gamma_step is {gamma_step!r}; legal: at least 0; 0.01 in the paper.")
    return HingeRates(budget, logits, k_min, gamma_step=gamma_step)
