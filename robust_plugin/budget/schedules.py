"""Schedules: how the density of a network falls from 1 while its weights train.

A schedule is a function ``schedule(passed, density)``. ``passed`` is the share of the phase that is
over, in [0, 1], and ``density`` is the share of the network that is kept at the end of the phase.
The function returns the share that is kept now. It falls in cuts: whenever its value changes, the
pruner chooses masks anew, by the magnitudes that the weights have at that moment.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.values import is_number, is_whole

ScheduleName = Literal["at_once", "geometric", "cubic"]
DensitySchedule = Callable[[float, float], float]
Schedule = ScheduleName | DensitySchedule

# Density falls in this many cuts, unless the user says otherwise. The cost of a cut is that of
# sorting the weights, so that 100 of them cost less than 1 % of a phase of some hundred steps.
_CUTS = 100


@dataclass(frozen=True)
class AtOnce:
    """One-shot pruning: the density is the target from the start, so that no phase is needed."""

    def __call__(self, passed: float, density: float) -> float:
        """Return ``density``."""
        return density


@explain_wrong_calls
@dataclass(frozen=True)
class Geometric:
    """Every cut keeps the same share of what is left: k(t) = k^u(t).

    u(t) is the share of ``cuts`` that are made, u(t) = floor(cuts min(1, t / until)) / cuts, where
    t is the share of the phase that is over. This is iterative pruning at a constant rate (Han et
    al. 2015; Frankle and Carbin 2019) in many small steps.

    Args:
        cuts: number of cuts from the dense network to the target density.
        until: share of the phase, in (0, 1], after which the target is reached.

    Raises:
        ValueError: if an argument is illegal.

    >>> Geometric(cuts=2)(0.5, 0.01)
    0.1
    """

    cuts: int = _CUTS
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_cuts(self.cuts, self.until)

    def __call__(self, passed: float, density: float) -> float:
        """Return k^u for the target density k."""
        return float(density ** _done(passed, self.cuts, self.until))


@explain_wrong_calls
@dataclass(frozen=True)
class Cubic:
    """Density falls fast at first and slowly at the end: k(t) = k + (1 - k) (1 - u(t))^3.

    u(t) is the share of the cuts that are made, as in ``Geometric`` (Zhu and Gupta 2017,
    equation 1).

    Args:
        cuts: number of cuts from the dense network to the target density.
        until: share of the phase, in (0, 1], after which the target is reached.

    Raises:
        ValueError: if an argument is illegal.
    """

    cuts: int = _CUTS
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_cuts(self.cuts, self.until)

    def __call__(self, passed: float, density: float) -> float:
        """Return k + (1 - k) (1 - u)^3 for the target density k."""
        left = 1 - _done(passed, self.cuts, self.until)
        return float(density + (1 - density) * left**3)


@explain_wrong_calls
@dataclass(frozen=True)
class Rounds:
    """Iterative pruning in a few rounds of equal length: k(t) = k^(r/n) in round r of n.

    Round r lasts from (r - 1) / (n - 1) to r / (n - 1) of the phase, r = 1, ..., n - 1. Round n,
    at the target density, is the training after the phase. So the first cut is made at the start
    (Sehwag et al. 2019, section 3).

    Args:
        n: number of rounds; 1 is one-shot pruning.

    Raises:
        ValueError: if n is no whole number of at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        if not (is_whole(self.n) and self.n >= 1):
            raise ValueError(f"n is {self.n!r}; legal: a whole number of rounds, at least 1.")

    def __call__(self, passed: float, density: float) -> float:
        """Return k^(r/n) for the target density k."""
        round_ = 1 + math.floor(passed * (self.n - 1) + 1e-9)
        return float(density ** (min(round_, self.n) / self.n))


def schedule_of(schedule: object) -> DensitySchedule:
    """Return the schedule that a name stands for; a function is returned as it is.

    Args:
        schedule: ``"at_once"``, ``"geometric"``, ``"cubic"``, or a function
            ``schedule(passed, density) -> density now``.

    Raises:
        TypeError: for a function that does not take two arguments.
        ValueError: for an unknown name, or an object that cannot be called.
    """
    names: dict[object, DensitySchedule] = {
        "at_once": AtOnce(),
        "geometric": Geometric(),
        "cubic": Cubic(),
    }
    if isinstance(schedule, str) and schedule in names:
        return names[schedule]
    if callable(schedule) and not isinstance(schedule, type):
        try:
            inspect.signature(schedule).bind(0.0, 0.5)
        except ValueError:
            pass  # a function of C, such as max, has no signature
        except TypeError as error:
            raise TypeError(
                f"schedule cannot be called as schedule(passed, density) ({error}); give a "
                "function of the share of the phase that is over, and of the density at its end."
            ) from error
        return schedule
    raise ValueError(
        f"schedule is {schedule!r}; legal: {', '.join(map(repr, names))}, a schedule such as "
        "Geometric(until=0.5) or Rounds(4), or a function schedule(passed, density)."
    )


def density_at(schedule: DensitySchedule, passed: float, density: float) -> float:
    """Return the density of a schedule, after a check of what a user's function returns.

    Args:
        schedule: the schedule.
        passed: share of the phase that is over, in [0, 1].
        density: density at the end of the phase.

    Raises:
        ValueError: if it is no number from ``density`` to 1, or at the end not ``density``.
    """
    found = schedule(passed, density)
    if not (is_number(found) and density - 1e-9 <= found <= 1 + 1e-9):
        raise ValueError(
            f"the schedule returned {found!r} at {passed:.3g} of the phase; legal: a density from "
            f"the target, {density:g}, to 1."
        )
    if passed >= 1 and found > density + 1e-9:
        raise ValueError(
            f"the schedule ends at the density {found:g}, and the target is {density:g}; return "
            "the target once all of the phase has passed."
        )
    return min(1.0, max(density, float(found)))


def schedule_name(schedule: DensitySchedule) -> str:
    """Return a text that is the same for equal schedules, to compare saved states by."""
    if isinstance(schedule, AtOnce | Geometric | Cubic | Rounds):
        return repr(schedule)
    named = schedule if hasattr(schedule, "__qualname__") else type(schedule)
    return f"{named.__module__}.{named.__qualname__}"


def _check_cuts(cuts: int, until: float) -> None:
    """Raise a ValueError for an illegal number of cuts or end of a schedule."""
    if not (is_whole(cuts) and cuts >= 1):
        raise ValueError(f"cuts is {cuts!r}; legal: a whole number of at least 1.")
    if not (is_number(until) and 0 < until <= 1):
        raise ValueError(f"until is {until!r}; legal: a share of the phase, 0 < until <= 1.")


def _done(passed: float, cuts: int, until: float) -> float:
    """Return the share of the cuts that are made once ``passed`` of the phase is over."""
    return math.floor(min(1.0, passed / until) * cuts + 1e-9) / cuts
