"""How learned rates meet the budget: the paper's hinge, or a budget held at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robust_plugin.budget.budget import Budget, rate_logit
from robust_plugin.masks.attach import GroupMask

Control = Literal["held", "hinge"]

# The budget reaches its target after this share of the phase, so that scores and rates have the
# rest to settle in.
_ANNEAL_SHARE = 0.6
# How far gradients may move a rate's logit over the whole phase: a factor of e in density. (Digits,
# 1 % kept: a factor of 20 let the last layer take a quarter of its weights, and cost accuracy.)
_TRAVEL = 1.0

# The paper's networks see 50,000 images in batches of 128.
_PAPER_STEPS = 391


@dataclass
class Schedule:
    """Where a prune phase stands, counted in optimizer steps."""

    step: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0

    @property
    def steps(self) -> int:
        """The length of the phase."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the phase that has passed, 0 before it is known."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


class RateControl(Protocol):
    """What a Pruner asks of the rates while it learns them."""

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Move what is scheduled, once an optimizer step has moved scores and rates."""

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Return how many entries each group keeps at this step."""

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Return what the rates add to the loss, a scalar."""

    def state(self) -> dict[str, Any]:
        """Return what continues the control; plain JSON."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class FixedRates:
    """Rates that nobody learns: every group keeps the count it has."""

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Nothing moves."""

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """The counts as they are."""
        return [int(mask.kept) for mask in masks]

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Zero."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class HeldRates:
    """The budget met exactly at every step, by a projection; gradients only trade between groups.

    After each step the logits are moved along the budget's own gradient until sum_l c_l k_l n_l =
    K(t) (``Budget.hold``). At rest the rates' gradients are then proportional to the budget's: no
    trade between two groups at equal cost would lower the loss. K falls geometrically from where
    the rates start to the target over the first 60 % of the phase.

    Args:
        budget: the target.
        logits: the rates to start from, float64, shape [groups].
        k_min: the least share of a group.
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
        """Limit the change of the logits, then project them on the budget of this step."""
        moved = limited(rate_logits(masks), self._previous, _TRAVEL / schedule.steps)
        self._previous = self.total(schedule).hold(moved, self.k_min)
        set_logits(masks, self._previous)

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """Whole counts that sum to the budget of this step."""
        return self.total(schedule).round(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """Zero: the budget is held without one."""
        return torch.zeros((), device=masks[0].scores.device)

    def state(self) -> dict[str, Any]:
        """The logits that the next change is measured from."""
        return {"previous": self._previous.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)


class HingeRates:
    """The paper's penalty: gamma(epoch) L_hw, gamma(epoch) = (epoch + 1) gamma_step.

    HARP, equations 4 and 5, with three departures that make the budget a promise on schedules of
    any length. gamma_step is scaled to the steps an epoch has. Where the paper freezes gamma for
    good once L_hw rounds to 0 at an epoch's end, and the kept share drifts above the target
    again (0.0959 -> 0.1019 for 0.1), here gamma grows on after any later epoch that ends above.
    And a step that takes the sum from above the target to below it, as momentum does, ends on it:
    below the target the penalty has nothing to say.

    Args:
        budget: the target.
        logits: the rates to start from, float64, shape [groups].
        k_min: the least share of a group.
        gamma_step: .01 in the paper (.1 for ImageNet), at its 391 steps an epoch.
    """

    def __init__(
        self, budget: Budget, logits: Tensor, k_min: float, *, gamma_step: float = 0.01
    ) -> None:
        self.budget, self.k_min, self.gamma_step = budget, k_min, gamma_step
        self.growths = 1
        self._previous = logits
        start = max(budget.goal, budget.share(logits, k_min))
        # What the penalty itself has to move the logits by comes on top of what gradients may.
        self._travel = _TRAVEL + rate_logit(start, k_min) - rate_logit(budget.goal, k_min)

    def gamma(self, schedule: Schedule) -> float:
        """Return gamma at this step."""
        scale = max(1.0, _PAPER_STEPS / schedule.steps_per_epoch) if schedule.steps else 1.0
        return self.gamma_step * scale * self.growths

    def after_step(self, masks: Sequence[GroupMask], schedule: Schedule) -> None:
        """Limit the change of the logits, stop at the target, and let gamma grow."""
        before = self._previous
        logits = limited(rate_logits(masks), before, self._travel / schedule.steps)
        if self._share(before) >= 1 > self._share(logits):
            logits = self.budget.hold(logits, self.k_min)
        set_logits(masks, logits)
        self._previous = logits
        if schedule.step % schedule.steps_per_epoch == 0:
            # Above by half a per cent or more: L_hw does not round to 0.
            self.growths += round(self._share(logits) - 1, 2) > 0

    def _share(self, logits: Tensor) -> float:
        """The kept share over the target; a hair below 1 counts as 1, which hold() solves for."""
        found = self.budget.share(logits, self.k_min) / self.budget.goal
        return found if abs(found - 1) > 1e-9 else 1.0

    def counts(self, masks: Sequence[GroupMask], schedule: Schedule) -> list[int]:
        """The counts that the rates ask for, on budget or not."""
        return self.budget.asked(densities(masks))

    def penalty(self, masks: Sequence[GroupMask], schedule: Schedule) -> Tensor:
        """gamma L_hw, differentiable by the rates."""
        return self.gamma(schedule) * self.budget.hinge([mask.density() for mask in masks])

    def state(self) -> dict[str, Any]:
        """How often gamma has grown, and the logits that the next change is measured from."""
        return {"growths": self.growths, "previous": self._previous.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.growths = int(state["growths"])
        self._previous = torch.tensor(state["previous"], dtype=torch.float64)


def control_of(
    control: Control | None, budget: Budget, masks: Sequence[GroupMask], gamma_step: float
) -> RateControl:
    """Return what holds learned rates to a budget; None where nobody learns them."""
    if control is None:
        return FixedRates()
    logits, k_min = rate_logits(masks), masks[0].k_min
    if control == "held":
        return HeldRates(budget, logits, k_min)
    return HingeRates(budget, logits, k_min, gamma_step=gamma_step)


def limited(logits: Tensor, previous: Tensor, most: float) -> Tensor:
    """Scale a step so that no logit moves by more than ``most``; its direction stays.

    A large layer's rate gradient is a sum over all its weights, and one step could empty or fill
    the layer. (A gradient hook would see scaled, per-rank, per-micro-batch gradients.)
    """
    change = logits - previous
    return previous + change * min(1.0, most / max(1e-12, float(change.abs().max())))


def rate_logits(masks: Sequence[GroupMask]) -> Tensor:
    """Return the rate logits r, float64 on the CPU, shape [groups]."""
    return torch.stack([m.rate.detach() for m in masks if m.rate is not None]).double().cpu()


def set_logits(masks: Sequence[GroupMask], logits: Tensor) -> None:
    """Write the rate logits."""
    for mask, logit in zip(masks, logits.tolist(), strict=True):
        if mask.rate is not None:
            mask.rate.data.fill_(logit)


def densities(masks: Sequence[GroupMask]) -> list[float]:
    """Return each group's density k as its rate has it."""
    k_min = masks[0].k_min
    found: list[float] = (k_min + (1 - k_min) * rate_logits(masks).sigmoid()).tolist()
    return found
