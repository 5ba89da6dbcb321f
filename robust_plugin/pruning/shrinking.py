"""The shrink phase: density falls by magnitude along a schedule while the weights train.

The phase comes before the prune phase. A pruner that learns leaves the last cut to its prune phase;
any other pruner goes to its density.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robust_plugin.budget.control import PhaseSteps
from robust_plugin.budget.plan import Planner
from robust_plugin.budget.schedules import AtOnce, DensitySchedule, density_at, schedule_of
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group
from robust_plugin.runtime.calls import user_level
from robust_plugin.runtime.values import is_number


@dataclass(frozen=True)
class Shrinking:
    """How the density falls in the shrink phase.

    Attributes:
        schedule: the density over the share of the phase that is over.
        last_cut: share of the shrunk network that the learned last cut keeps; 1 if nothing is
            learned.
    """

    schedule: DensitySchedule
    last_cut: float

    @property
    def has_phase(self) -> bool:
        """Whether there is a shrink phase: the schedule is another one than ``AtOnce``."""
        return not isinstance(self.schedule, AtOnce)

    def end(self, density: float) -> float:
        """Return the density at the end of the phase, for a density k that pruning ends with.

        It is k / last_cut, or sqrt(k) if that is less, so that at large densities the phase makes
        half of the way (on a logarithmic scale).
        """
        if self.last_cut == 1 or not self.has_phase:
            return density
        return min(density / self.last_cut, math.sqrt(density))

    def fall(self, passed: float) -> Callable[[float], float]:
        """Return the function from the final density of a group or network to that of now.

        Args:
            passed: share of the phase that is over, in [0, 1].
        """
        return lambda density: density_at(self.schedule, passed, self.end(density))

    def cuts(self, before: PhaseSteps, now: PhaseSteps, density: float) -> bool:
        """Return whether the density falls between two moments of the phase."""
        return self.fall(before.progress)(density) != self.fall(now.progress)(density)


def shrinking_of(schedule: object, last_cut: float, *, learns: bool) -> Shrinking:
    """Return how the density falls, for arguments of a pruner.

    Args:
        schedule: name of a schedule, or a function (see ``schedule_of``).
        last_cut: share of the shrunk network that the learned last cut keeps, in (0, 1).
        learns: whether the pruner learns scores or rates; if not, ``last_cut`` has no effect.

    Raises:
        ValueError: for an unknown schedule or an illegal share.
    """
    if not (is_number(last_cut) and 0 < last_cut < 1):
        raise ValueError(
            f"last_cut is {last_cut!r}; legal: the share of the shrunk network that the learned "
            "last cut keeps, above 0 and below 1; 0.5 learns the last halving."
        )
    return Shrinking(schedule_of(schedule), last_cut if learns else 1.0)


def shrink(
    groups: Sequence[Group],
    masks: Sequence[GroupMask],
    plan: Planner,
    density: float | None,
    fall: Callable[[float], float],
) -> None:
    """Choose masks by the present magnitudes, with as many ones as the density of now allows.

    Weights that are pruned have the magnitude 0 and rank last, so they never come back.

    Args:
        groups: the groups of weights or channels.
        masks: their masks.
        plan: function from a density to counts.
        density: density that pruning ends with; None if rates or pattern imply it.
        fall: function from that density to the density of now.
    """
    most = tuple(mask.kept for mask in masks)
    counts = plan(density, fall=fall, most=most).counts
    for group, mask, count in zip(groups, masks, counts, strict=True):
        mask.scores.data.copy_(group.magnitudes.view_as(mask.scores))
        mask.choose(count)


def check_shrank(name: str, steps: PhaseSteps, *, follows: bool, early: bool) -> None:
    """Check the length of a shrink phase that ends; warn if the rest has to be cut at once.

    Args:
        name: name of the pruner in error messages.
        steps: steps that were made, and how many were announced.
        follows: whether an optimizer is followed.
        early: whether the phase ends before its schedule has reached the end.

    Raises:
        ValueError: if no step was made.
    """
    if steps.step == 0:
        cause = "the followed optimizer has made no step" if follows else "no optimizer is followed"
        raise ValueError(
            f"{name} has not shrunk the network in its shrink phase: {cause}. Call "
            "pruner.follow(optimizer, epochs=..., steps_per_epoch=...) with an optimizer of what "
            "set_phase('shrink') returned, and then train; or leave schedule out to prune at once."
        )
    if early:
        warnings.warn(
            f"the shrink phase ends at step {steps.step} of {steps.total}, so that the density "
            "falls to the end of its schedule at once. follow() counts optimizer steps, not "
            "batches.",
            stacklevel=user_level(),
        )
