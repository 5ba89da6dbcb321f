"""A budget of n:m patterns: each layer keeps a whole n of every m, together at most the total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.budget import Budget
from robust_plugin.masks import Pattern

# With 64 the choice for 60 layers, made at every step of the prune phase, takes some milliseconds.
_WIDTH = 64


def check_learns_rates(pattern: Pattern, control: str) -> None:
    """Raise unless rates can be learned under a pattern.

    Raises:
        ValueError: if the pattern fixes the rates, or the control asks for counts off budget.
    """
    if pattern.n is not None:
        raise ValueError(
            f"rates are to be learned, but a {pattern} pattern fixes the rates; give a density and "
            f"pattern='n:{pattern.m}', or take HydraPruner."
        )
    if control != "held":
        raise ValueError(
            f"control is {control!r} and the pattern {pattern}; only 'held' rounds rates to it."
        )


@dataclass(frozen=True)
class PatternBudget(Budget):
    """A budget that is spent in steps: one more of every ``m`` entries of a layer.

    Attributes:
        m: of the pattern.
    """

    m: int = 1

    @classmethod
    def of_every(cls, m: int, budget: Budget) -> PatternBudget:
        """Return a budget in steps.

        Raises:
            ValueError: if it does not buy one of every ``m`` entries in each layer.
        """
        if budget.total * m < budget.full:
            raise ValueError(
                f"density is {budget.density}; a pattern n:{m} keeps at least 1 of every {m}, "
                f"so legal is 1/{m} to 1."
            )
        return cls(budget.sizes, budget.costs, budget.density, budget.total, m=m)

    def round(self, densities: Sequence[float]) -> list[int]:
        """Round densities to counts that are n of every m, 1 <= n <= m, within the total.

        The densities are scaled to cost the total, and ``nearest`` to those is chosen. What is
        left then buys further steps, the dearest first, until none fits.
        """
        entries = [size // self.m for size in self.sizes]
        costs = tuple(cost * step for cost, step in zip(self.costs, entries, strict=True))
        steps = Budget((self.m,) * len(costs), costs, self.density, self.total)
        counts = nearest(steps.scaled(densities), costs, self.total, m=self.m)
        left = self.total - steps.cost(counts)
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            more = min(self.m - counts[i], int(left // costs[i]))
            counts[i] += more
            left -= more * costs[i]
        return [n * step for n, step in zip(counts, entries, strict=True)]


def nearest(wishes: Sequence[float], costs: Sequence[int], total: int, *, m: int) -> list[int]:
    """Return whole n_l, 1 <= n_l <= m, within the total and nearest to what is wished.

    Minimises sum_l c_l (n_l - e_l)^2 subject to sum_l c_l n_l <= total, the dearest layers first.
    Of the choices for the layers so far only those remain that no other undercuts in both cost and
    distance: that is exact until they are thinned out to ``_WIDTH``.

    Args:
        wishes: e_l, in (0, m].
        costs: c_l, what one more costs.
        total: at least sum_l c_l.
        m: the most.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    reserve = sum(costs)
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for i in order:
        reserve -= costs[i]
        found = sorted(
            (spent + n * costs[i], off + costs[i] * (n - wishes[i]) ** 2, (*chosen, n))
            for spent, off, chosen in front
            for n in range(1, m + 1)
            if spent + n * costs[i] + reserve <= total
        )
        front, least = [], math.inf
        for choice in found:
            if choice[1] < least:
                front.append(choice)
                least = choice[1]
        # Evenly by rank, the cheapest and the nearest among them.
        apart = max(1.0, (len(front) - 1) / (_WIDTH - 1))
        front = [front[-1 - round(k * apart)] for k in range(min(_WIDTH, len(front)))][::-1]
    counts = dict(zip(order, front[-1][2], strict=True))
    return [counts[i] for i in range(len(costs))]
