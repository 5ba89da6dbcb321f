"""How learned rates meet the budget during the prune phase.

``HeldRates`` projects the rates onto the budget after every optimizer step. ``HingeRates`` adds the
penalty of the HARP paper to the loss instead. ``FixedRates`` is for rates that are not learned. All
three implement ``RateControl``, which a pruner calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.logits import densities, limited, rate_logit, rate_logits, set_logits
from robust_plugin.masks.attach import GroupMask

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
class Schedule:
    """Progress of a prune phase.

    Attributes:
        step: number of optimizer steps so far.
        epochs: number of epochs of the phase, 0 before it is known.
        steps_per_epoch: number of optimizer steps per epoch, 0 before it is known.
    """

    step: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0

    @property
    def steps(self) -> int:
        """The length of the phase in optimizer steps, 0 before it is known."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the phase that has passed, in [0, 1]; 0 before its length is known."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


class RateControl(Protocol):
    """Interface through which a Pruner moves rates during the prune phase."""

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Adjust the rates after an optimizer step has moved scores and rates."""

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Return the number of entries that each group keeps at this step."""

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Return the penalty that the rates add to the loss, a scalar."""

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs to continue, as plain JSON data."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class FixedRates:
    """Rates that are not learned: every group keeps the count that it has."""

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Do nothing: the rates are fixed."""

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Return the present counts."""
        return [int(mask.kept) for mask in masks]

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Return zero."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


class HeldRates:
    """Learned rates that meet the budget exactly at every step, by a projection.

    Gradients only move entries between groups. After each step the logits move along the gradient
    of the budget until sum_l c_l k_l n_l = K(t) (``Budget.hold``). At rest, the gradients of the
    rates are proportional to the gradient of the budget: no exchange between two groups at equal
    cost would lower the loss. K falls geometrically from the cost of the first rates to the target,
    over the first 60 % of the phase.

    Args:
        budget: budget to meet at the end of the phase.
        logits: logits of the first rates, float64, shape [groups].
        k_min: least density of a group.
    """

    def __init__(self, budget: Budget, logits: Tensor, k_min: float) -> None:
        self.budget, self.k_min = budget, k_min
        self.start = max(budget.goal, budget.share(logits, k_min))
        self._previous = logits

    def total(self, schedule: Schedule) -> Budget:
        """Return the budget K(t) of this step."""
        passed = min(1.0, schedule.progress / _ANNEAL_SHARE)
        if passed == 1:
            return self.budget
        share = self.start * (self.budget.goal / self.start) ** passed
        return self.budget.rescaled(max(self.budget.total, share * self.budget.full))

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Limit the change of the logits, then project them onto the budget of this step."""
        moved = limited(rate_logits(masks), self._previous, _TRAVEL / schedule.steps)
        self._previous = self.total(schedule).hold(moved, self.k_min)
        set_logits(masks, self._previous)

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Return whole counts that meet the budget of this step."""
        return self.total(schedule).round(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Return zero: the projection meets the budget without a penalty."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """Return the logits that the next change is measured from."""
        return {"previous": self._previous.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)


class HingeRates:
    """Learned rates with the penalty of the paper: gamma L_hw, gamma = (epoch + 1) gamma_step.

    This is HARP, equations 4 and 5, with three changes, so that the rates meet the budget on
    schedules of any length:

    - gamma_step is scaled by the number of steps per epoch.
    - The paper freezes gamma for good once L_hw rounds to 0 at the end of an epoch, and the kept
      share then drifts above the target again (0.0959 -> 0.1019 for 0.1). Here gamma grows again
      after every later epoch that ends above the target.
    - Momentum can carry the sum from above the target to below it, where the penalty is zero. Here
      such a step ends on the target.

    Args:
        budget: budget to meet at the end of the phase.
        logits: logits of the first rates, float64, shape [groups].
        k_min: least density of a group.
        gamma_step: growth of gamma per epoch, for 391 steps per epoch: 0.01 in the paper, 0.1
            there for ImageNet.

    Attributes:
        growths: gamma is this many times the scaled gamma_step; 1 at the start.
    """

    def __init__(
        self, budget: Budget, logits: Tensor, k_min: float, *, gamma_step: float = 0.01
    ) -> None:
        self.budget, self.k_min, self.gamma_step = budget, k_min, gamma_step
        self.growths = 1
        self._previous = logits
        start = max(budget.goal, budget.share(logits, k_min))
        # The penalty has to move the logits from the start to the target. That distance is added to
        # what gradients may move them by.
        self._travel = _TRAVEL + rate_logit(start, k_min) - rate_logit(budget.goal, k_min)

    def gamma(self, schedule: Schedule) -> float:
        """Return gamma, the weight of the penalty at this step."""
        scale = max(1.0, _PAPER_STEPS / schedule.steps_per_epoch) if schedule.steps else 1.0
        return self.gamma_step * scale * self.growths

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Limit the change of the logits, stop them at the target, and let gamma grow."""
        before = self._previous
        logits = limited(rate_logits(masks), before, self._travel / schedule.steps)
        if self._share(before) >= 1 > self._share(logits):
            logits = self.budget.hold(logits, self.k_min)
        set_logits(masks, logits)
        self._previous = logits
        if schedule.step % schedule.steps_per_epoch == 0:
            # If the sum is half a per cent or more above the target, L_hw does not round to 0.
            self.growths += round(self._share(logits) - 1, 2) > 0

    def _share(self, logits: Tensor) -> float:
        """Return the kept share over the target.

        ``Budget.hold`` makes it 1 up to rounding, so values within 1e-9 of 1 count as 1.
        """
        found = self.budget.share(logits, self.k_min) / self.budget.goal
        return found if abs(found - 1) > 1e-9 else 1.0

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Return the counts that the rates ask for, whether or not they meet the budget."""
        return self.budget.asked(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Return gamma L_hw, a scalar that is differentiable with respect to the rates."""
        return self.gamma(schedule) * self.budget.hinge([mask.density() for mask in masks])

    def state(self) -> dict[str, Any]:
        """Return the growths of gamma, and the logits that the next change is measured from."""
        return {"growths": self.growths, "previous": self._previous.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.growths = int(state["growths"])
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)


def control_of(
    control: Control | None, budget: Budget, masks: Sequence[GroupMask], gamma_step: float
) -> RateControl:
    """Return the object that makes learned rates meet a budget.

    Args:
        control: "held", "hinge", or None if the rates are not learned.
        budget: budget to meet at the end of the phase.
        masks: masks of all groups, with the rates to start from.
        gamma_step: growth of gamma per epoch for "hinge" (see ``HingeRates``).
    """
    if control is None:
        return FixedRates()
    logits, k_min = rate_logits(masks), masks[0].k_min
    if control == "held":
        return HeldRates(budget, logits, k_min)
    return HingeRates(budget, logits, k_min, gamma_step=gamma_step)
