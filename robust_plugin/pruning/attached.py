"""What was built when a pruner was attached, and masks that are computed anew from it later.

Masks are computed anew when the weights of a trained network are loaded, at each cut of the shrink
phase, and where the prune phase begins after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.control import Control, PhaseSteps, RateControl, control_of
from robust_plugin.budget.density_logits import rate_logit
from robust_plugin.budget.plan import Planner
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group
from robust_plugin.pruning.scores import Scores, initial_scores
from robust_plugin.pruning.shrinking import Shrinking, ranked_last, shrink


@dataclass(frozen=True)
class Attachment:
    """Masks and other objects that are built when a pruner is attached to a model.

    Attributes:
        groups: the groups of weights or channels that are pruned, in the order of the masks.
        left_dense: names of the weights that stay dense because the n:m pattern does not fit them.
        plan: function from a density to the budget, and to what each group keeps at first.
        density: density that the pruner was given; None if rates or pattern imply it.
        shrinking: how the density falls in the shrink phase.
        budget: the largest cost that may be kept.
        masks: one mask per group, attached to the model.
        control: makes learned layer densities meet the budget; does nothing if none are learned.
        settings: settings that a saved state must have in common with the pruner, plain JSON.
        given: density of each group at the end, if rates or pattern imply it; else empty.
        scores: how initial scores are computed.
        kind: how learned layer densities meet the budget; None if they are not learned.
        gamma_step: growth per epoch of the factor of the hinge penalty.
    """

    groups: tuple[Group, ...]
    left_dense: tuple[str, ...]
    plan: Planner
    density: float | None
    shrinking: Shrinking
    budget: Budget
    masks: tuple[GroupMask, ...]
    control: RateControl
    settings: dict[str, Any]
    given: tuple[float, ...]
    scores: Scores
    kind: Control | None
    gamma_step: float

    def compute_anew(self, density: float) -> None:
        """Compute the first scores, densities and masks from the weights as they are now.

        Args:
            density: density of the budget.
        """
        for mask in self.masks:
            mask.mask.fill_(True)  # magnitudes are those of the weights times masks
        plan = self.plan(self._wanted(density), fall=self.shrinking.fall(0.0))
        for group, mask, k, count in zip(
            self.groups, self.masks, plan.densities, plan.counts, strict=True
        ):
            mask.scores.data.copy_(initial_scores(self.scores, group.name, group.magnitudes))
            if mask.rate is not None:
                mask.rate.data.fill_(rate_logit(k, mask.k_min))
            mask.choose(count)
        self.control.resume(self.masks)

    def _wanted(self, density: float) -> float | None:
        """Return a density of the budget for ``plan``, which takes None where others imply it."""
        return None if self.density is None else density

    def cuts(self, before: PhaseSteps, now: PhaseSteps, density: float) -> bool:
        """Return whether the density falls between two moments of the shrink phase.

        Args:
            before: the earlier moment.
            now: the later one.
            density: density of the budget.
        """
        return self.shrinking.cuts(before, now, self.given or (density,))

    def shrink(self, passed: float, density: float) -> None:
        """Choose masks by magnitude, at the density of a moment of the shrink phase.

        Args:
            passed: share of the phase that is over, in [0, 1].
            density: density of the budget.
        """
        fall = self.shrinking.fall(passed)
        shrink(self.groups, self.masks, self.plan, self._wanted(density), fall)

    def begin_last_cut(self) -> tuple[Budget, RateControl]:
        """Compute scores, rates and masks from the shrunk network, for the prune phase.

        Weights that are pruned by now get the score 0, and no rate exceeds what is left of its
        group: they stay pruned.

        Returns:
            tuple: the budget of the prune phase, whose limits are what is left, and the control of
            its rates.
        """
        most = tuple(mask.kept for mask in self.masks)
        for group, mask in zip(self.groups, self.masks, strict=True):
            scores = initial_scores(self.scores, group.name, group.magnitudes)
            mask.scores.data.copy_(ranked_last(scores.view_as(mask.scores), pruned=~mask.mask))
            if mask.rate is not None:
                mask.rate.data.fill_(rate_logit(mask.kept / group.size, mask.k_min))
        if self.kind is None:
            counts = self.plan(self.density, most=most).counts
            for mask, count in zip(self.masks, counts, strict=True):
                mask.choose(count)
        return self.for_last_cut(most)

    def for_last_cut(self, most: tuple[int, ...]) -> tuple[Budget, RateControl]:
        """Return the budget and the control of rates for a prune phase after shrinking.

        Args:
            most: number of weights or channels that shrinking has left of each group.
        """
        budget = replace(self.budget, most=most)
        return budget, control_of(self.kind, budget, self.masks, self.gamma_step)
