"""Counts in whole blocks: channels by as many as hardware computes at a time.

A register holds 8 float32 with AVX2 and 16 with AVX-512. A ResNet-18 with half its channels at LAMP
rates, against the dense one on a CPU with AVX-512: 2.3 times as fast at any counts, 2.8 in blocks
of 8, 3.2 of 16; with a quarter 7.0, 7.2 and 9.4 (tests/benchmarks/test_channels.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.budget.budget import Budget
from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern


def block_sizes(groups: Sequence[Group], round_to: int) -> tuple[int, ...]:
    """Return each group's block: ``round_to`` where that divides its channels, else 1.

    Raises:
        TypeError: if round_to is no integer.
        ValueError: if it is below 1, or above and divides the channels of no group.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int):
        raise TypeError(f"round_to is {round_to!r}; legal: an integer of 1 or more, such as 8.")
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}; legal: 1 (any count) or more, such as 8 or 16.")
    channels = [group.channels for group in groups if group.channels]
    if round_to > 1 and not channels:
        raise ValueError(
            f"round_to is {round_to}, but the groups are of single weights, where no count is "
            "faster than another; give groups=channel_groups(model, x[:1]), or leave round_to out."
        )
    if round_to > 1 and all(size % round_to for size in channels):
        raise ValueError(
            f"round_to is {round_to}, which divides the size of no group: they have "
            f"{', '.join(map(str, sorted(set(channels))))} channels; take a divisor of these."
        )
    return tuple(
        round_to if group.channels and group.channels % round_to == 0 else 1 for group in groups
    )


@dataclass(frozen=True)
class BlockBudget(Budget):
    """A budget that is spent in whole blocks of entries, at least one a group.

    Odd counts leave part of every vector instruction idle, so that fewer multiply-adds are not
    faster. A budget of entries is one of blocks at other prices: n_l = s_l b_l costs
    fixed + sum_l (c_l s_l) b_l + sum_ij (c_ij s_i s_j) b_i b_j.

    Attributes:
        steps: s_l, the entries of a block, a divisor of n_l.
    """

    steps: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise a ValueError unless the total buys one block of every group."""
        least = self.cost(self.steps)
        if self.total < least:
            raise ValueError(
                f"density is {self.density:g} and leaves {self.total / self.full:.3g} of the "
                f"network's cost, but one block of every group (round_to={max(self.steps)}) and "
                f"what is not pruned already cost {least / self.full:.3g}; take a greater density "
                "or a smaller round_to."
            )

    @property
    def blocks(self) -> Budget:
        """The same budget, counted in blocks."""
        s = self.steps
        return Budget(
            tuple(size // step for size, step in zip(self.sizes, s, strict=True)),
            tuple(cost * step for cost, step in zip(self.costs, s, strict=True)),
            self.density,
            self.total,
            tuple((i, j, cost * s[i] * s[j]) for i, j, cost in self.products),
            self.fixed,
        )

    def round(self, densities: Sequence[float]) -> list[int]:
        """Round densities to whole blocks within the total, what is left buying more of them."""
        return self._entries(self.blocks.round(densities))

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return the counts that densities ask for, on budget or not, rounded up to blocks."""
        return self._entries(self.blocks.asked(densities))

    def _entries(self, blocks: Sequence[int]) -> list[int]:
        return [count * step for count, step in zip(blocks, self.steps, strict=True)]


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
