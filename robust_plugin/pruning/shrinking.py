"""The shrink phase: density falls by magnitude along a schedule while the weights train.

The phase comes before the prune phase. A pruner that learns leaves the last cut to its prune phase;
any other pruner goes to its density.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def cuts(self, before: PhaseSteps, now: PhaseSteps, densities: Sequence[float]) -> bool:
        """Return whether the density falls between two moments of the phase.

        Args:
            before: the earlier moment.
            now: the later one.
            densities: density of the network at the end; or those of its groups, if these are
                given.

        Raises:
            ValueError: if a density rises.
        """
        earlier = [self.fall(before.progress)(density) for density in densities]
        later = [self.fall(now.progress)(density) for density in densities]
        for high, low in zip(earlier, later, strict=True):
            if low > high + 1e-9:
                raise ValueError(
                    f"the schedule rises from {high:g} to {low:g} at {now.progress:.3g} of the "
                    "phase; weights that are pruned do not come back: return a density that "
                    "never rises."
                )
        return earlier != later


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

    What is pruned ranks last, and no group keeps more than before, so that nothing comes back.

    Args:
        groups: the groups of weights or channels.
        masks: their masks.
        plan: function from a density to counts.
        density: density that pruning ends with; None if rates or pattern imply it.
        fall: function from that density to the density of now.
    """
    counts = plan(density, fall=fall, most=tuple(mask.kept for mask in masks)).counts
    choose_by_magnitude(groups, masks, counts)


def choose_by_magnitude(
    groups: Sequence[Group], masks: Sequence[GroupMask], counts: Sequence[int]
) -> None:
    """Choose masks that keep the largest magnitudes among what the masks keep now.

    Args:
        groups: the groups of weights or channels.
        masks: their masks.
        counts: number of entries that each group keeps from now on, at most that of now.
    """
    for group, mask, count in zip(groups, masks, counts, strict=True):
        values = group.magnitudes.view_as(mask.scores)
        mask.scores.data.copy_(ranked_last(values, pruned=~mask.mask))
        mask.choose(count)


def ranked_last(scores: Tensor, *, pruned: Tensor) -> Tensor:
    """Return scores that are 0 for pruned entries, and not 0 for all others, as float32.

    A weight that is kept can be 0, as after an initialisation with zeros. Without this, it would be
    as good as a pruned one, and the pruned one could take its place.

    Args:
        scores: scores or magnitudes, any shape.
        pruned: which entries are pruned, bool, same shape.
    """
    least = torch.finfo(torch.float32).tiny
    scores = scores.detach().float()
    return scores.where(scores != 0, least).masked_fill(pruned, 0.0)


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
        raise ValueError(not_shrunk(name, follows=follows))
    if early:
        warnings.warn(
            f"the shrink phase ends at step {steps.step} of {steps.total}, so that the density "
            "falls to the end of its schedule at once. follow() counts optimizer steps, not "
            "batches.",
            stacklevel=user_level(),
        )


def not_shrunk(name: str, *, follows: bool) -> str:
    """Return the error message for a shrink phase in which the density did not fall.

    Args:
        name: name of the pruner.
        follows: whether an optimizer is followed.
    """
    cause = "the followed optimizer has made no step" if follows else "no optimizer is followed"
    return (
        f"{name} has not shrunk the network in its shrink phase: {cause}. Call "
        "pruner.follow(optimizer, epochs=..., steps_per_epoch=...) with an optimizer of what "
        "set_phase('shrink') returned, and then train; or leave schedule out to prune at once."
    )
