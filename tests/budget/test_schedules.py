"""Schedules: closed forms, what functions of users may return, and what is refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest

from robust_plugin import Cubic, Geometric, Rounds
from robust_plugin.budget.schedules import (
    AtOnce,
    DensitySchedule,
    density_at,
    schedule_name,
    schedule_of,
)

TARGETS = [0.5, 0.1, 0.01, 0.001]
MOMENTS = [i / 40 for i in range(41)]
SCHEDULES: list[DensitySchedule] = [
    AtOnce(),
    Geometric(),
    Geometric(cuts=7, until=0.3),
    Cubic(),
    Cubic(cuts=1),
    Cubic(cuts=13, until=0.75),
    Rounds(1),
    Rounds(2),
    Rounds(5),
]


@pytest.mark.parametrize("k", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_falls_to_the_target_and_never_rises(
    schedule: DensitySchedule, k: float
) -> None:
    values = [density_at(schedule, t, k) for t in MOMENTS]
    assert all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))
    assert all(k <= value <= 1 for value in values)
    assert values[-1] == k


@pytest.mark.parametrize("k", TARGETS)
def test_at_once_is_the_target_from_the_start(k: float) -> None:
    assert {AtOnce()(t, k) for t in MOMENTS} == {k}


@pytest.mark.parametrize("k", TARGETS)
def test_geometric_keeps_the_same_share_at_every_cut(k: float) -> None:
    cuts = 20
    values = [Geometric(cuts=cuts)(i / cuts, k) for i in range(cuts + 1)]
    assert values[0] == 1 and values[-1] == k
    kept = [later / earlier for earlier, later in zip(values, values[1:], strict=False)]
    assert kept == pytest.approx([k ** (1 / cuts)] * cuts)


@pytest.mark.parametrize("k", TARGETS)
@pytest.mark.parametrize(("cuts", "until"), [(100, 1.0), (10, 0.5), (8, 0.25)])
def test_cubic_is_equation_1_of_zhu_and_gupta(k: float, cuts: int, until: float) -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, with s_i = 0 and t_0 = 0."""
    steps = 400  # of the phase; n cuts, one every dt steps
    n, dt = cuts, until * steps / cuts
    for cut in range(n + 1):
        sparsity = (1 - k) + (0 - (1 - k)) * (1 - cut * dt / (n * dt)) ** 3
        assert 1 - Cubic(cuts, until)(cut * dt / steps, k) == pytest.approx(sparsity)


@pytest.mark.parametrize("kind", [Geometric, Cubic])
def test_between_cuts_nothing_changes_and_after_until_neither(kind: Callable[..., Any]) -> None:
    schedule, k = kind(cuts=4, until=0.5), 0.05
    steps = 80  # cuts after 10, 20, 30 and 40 of them
    values = [schedule(step / steps, k) for step in range(steps + 1)]
    changes = [i for i in range(1, steps + 1) if values[i] != values[i - 1]]
    assert changes == [10, 20, 30, 40]
    assert set(values[40:]) == {k}


@pytest.mark.parametrize("steps", [3, 7, 30, 99, 100, 391])
def test_rounding_of_the_time_leaves_no_cut_out(steps: int) -> None:
    """With as many cuts as steps, there is one at every step, whatever step / steps rounds to."""
    values = [Geometric(cuts=steps)(step / steps, 0.01) for step in range(steps + 1)]
    assert len(set(values)) == steps + 1


@pytest.mark.parametrize("k", TARGETS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_rounds_are_the_densities_of_iterative_pruning(n: int, k: float) -> None:
    """Round r keeps k^(r/n). Rounds 1 to n - 1 have equal parts of the phase."""
    schedule, per_round = Rounds(n), 6
    steps = per_round * max(1, n - 1)
    for r in range(1, n):
        for step in range((r - 1) * per_round, r * per_round):
            assert schedule(step / steps, k) == k ** (r / n)
    assert schedule(1.0, k) == k


def test_names_stand_for_schedules() -> None:
    assert schedule_of("at_once") == AtOnce()
    assert schedule_of("geometric") == Geometric()
    assert schedule_of("cubic") == Cubic()
    assert Geometric() == Geometric(100, 1.0) != Geometric(99)
    own = Rounds(3)
    assert schedule_of(own) is own
    assert schedule_of(max) is max  # has no signature that could be checked


@pytest.mark.parametrize(
    "wrong", ["linear", "Cubic", None, 0.5, 3, Geometric, [0.5, 0.1], {"cubic": 1}]
)
def test_what_is_no_schedule(wrong: object) -> None:
    with pytest.raises(ValueError, match="legal: 'at_once', 'geometric', 'cubic', a sch") as said:
        schedule_of(wrong)
    assert repr(wrong) in str(said.value)


@pytest.mark.parametrize("wrong", [lambda passed: 0.5, lambda: 0.5, lambda a, b, c: 0.5])
def test_functions_of_other_arguments(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"cannot be called as schedule\(passed, density\)"):
        schedule_of(wrong)


@pytest.mark.parametrize("cuts", [0, -1, 2.5, "10", True, None])
@pytest.mark.parametrize("kind", [Geometric, Cubic])
def test_illegal_cuts(kind: Callable[..., Any], cuts: object) -> None:
    with pytest.raises(ValueError, match=f"cuts is {cuts!r}; legal: a whole number"):
        kind(cuts=cuts)


@pytest.mark.parametrize("until", [0, -0.5, 1.01, math.nan, "1", True, None])
@pytest.mark.parametrize("kind", [Geometric, Cubic])
def test_illegal_ends(kind: Callable[..., Any], until: object) -> None:
    with pytest.raises(ValueError, match=f"until is {until!r}; legal: a share of the phase"):
        kind(until=until)


@pytest.mark.parametrize("n", [0, -3, 1.5, "4", True, None])
def test_illegal_rounds(n: object) -> None:
    with pytest.raises(ValueError, match=f"n is {n!r}; legal: a whole number of rounds"):
        Rounds(n)  # type: ignore[arg-type]


def test_functions_of_users() -> None:
    """A straight line, and one with an own number type."""
    line = schedule_of(lambda t, k: 1 - t * (1 - k))
    assert density_at(line, 0.25, 0.2) == pytest.approx(0.8)
    assert density_at(line, 1.0, 0.2) == pytest.approx(0.2)
    # What rounding leaves beside a bound counts as the bound.
    assert density_at(lambda t, k: k * (1 - 1e-12), 1.0, 0.2) == 0.2
    assert density_at(lambda t, k: 1 + 1e-12, 0.0, 0.2) == 1.0


@pytest.mark.parametrize("returned", [0.05, 0.0, -1.0, 1.2, math.nan, None, "0.5", True])
def test_functions_that_leave_the_range(returned: object) -> None:
    with pytest.raises(ValueError, match="legal: a density from the target, 0.1, to 1") as said:
        density_at(lambda t, k: returned, 0.5, 0.1)  # type: ignore[arg-type,return-value]
    assert f"returned {returned!r} at 0.5 of the phase" in str(said.value)


def test_a_function_that_ends_above_the_target() -> None:
    half = schedule_of(lambda t, k: 1 - 0.5 * t)
    assert density_at(half, 0.99, 0.1) == pytest.approx(0.505)
    with pytest.raises(ValueError, match="ends at the density 0.5, and the target is 0.1; return"):
        density_at(half, 1.0, 0.1)


def my_own(t: float, k: float) -> float:
    return k


class MyOwn:
    def __call__(self, t: float, k: float) -> float:
        return k


def test_names_of_schedules_are_equal_for_equal_schedules() -> None:
    assert schedule_name(Geometric(10, 0.5)) == schedule_name(Geometric(cuts=10, until=0.5))
    names = [*SCHEDULES, my_own, MyOwn(), operator.mul]
    assert len({schedule_name(each) for each in names}) == len(names)
    assert schedule_name(my_own) == f"{__name__}.my_own"
    assert schedule_name(MyOwn()) == schedule_name(MyOwn()) == f"{__name__}.MyOwn"
