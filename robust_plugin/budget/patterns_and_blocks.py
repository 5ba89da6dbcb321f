"""Budgets where each layer keeps a whole number of blocks: channels in blocks, and n:m patterns.

A block has as many channels as the hardware computes at once: a register holds 8 float32 values
with AVX2 and 16 with AVX-512. The table has the speed of a ResNet-18 with the layer densities of
LAMP, relative to the dense network, on a CPU with AVX-512 (tests/benchmarks/test_channels.py).
"Any counts" means that a layer may keep any number of channels.

================  ==========  ===========  ============
channels kept     any counts  blocks of 8  blocks of 16
================  ==========  ===========  ============
half              2.3         2.8          3.2
a quarter         7.0         7.2          9.4
================  ==========  ===========  ============

An n:m pattern keeps n of every m weights of a layer, so a layer of N weights keeps a multiple of
N / m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.budget.budget import Budget
from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern


def block_sizes(groups: Sequence[Group], round_to: int) -> tuple[int, ...]:
    """Return the block size of each group: ``round_to`` if it divides the channels, else 1.

    Args:
        groups: groups to prune.
        round_to: wanted block size in channels; 1 allows any number of channels.

    Raises:
        TypeError: if ``round_to`` is not an integer.
        ValueError: if ``round_to`` is below 1, or if it is above 1 and divides the number of
            channels of no group.
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


@dataclass(frozen=True, repr=False)
class BlockBudget(Budget):
    """Budget where every group keeps whole blocks of its channels or weights, at least one block.

    A number of channels that is no multiple of the hardware's vector width leaves part of every
    vector instruction idle, so fewer multiply-adds may not be faster. If group l keeps b_l blocks
    of s_l entries, the network costs fixed + sum_l (c_l s_l) b_l + sum_ij (c_ij s_i s_j) b_i b_j.

    Attributes:
        steps: s_l, number of entries per block of each group, a divisor of the group's size.
    """

    steps: tuple[int, ...] = ()

    @property
    def blocks(self) -> Budget:
        """The same budget, with sizes and costs that count blocks instead of single entries."""
        s = self.steps
        return Budget(
            tuple(size // step for size, step in zip(self.sizes, s, strict=True)),
            tuple(cost * step for cost, step in zip(self.costs, s, strict=True)),
            self.density,
            self.total,
            tuple((i, j, cost * s[i] * s[j]) for i, j, cost in self.products),
            self.fixed,
            most=tuple(most // step for most, step in zip(self.most, s, strict=bool(self.most))),
        )

    def round(self, densities: Sequence[float]) -> list[int]:
        """Turn densities into whole blocks that cost at most the total (see ``Budget.round``).

        Args:
            densities: share of its entries that each group should keep.

        Returns:
            list: number of kept entries of each group, a multiple of its block size.
        """
        return self._entries(self.blocks.round(densities))

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return how many entries each group keeps at these densities, rounded up to whole blocks.

        Their cost may be above or below the total.
        """
        return self._entries(self.blocks.asked(densities))

    def _entries(self, blocks: Sequence[int]) -> list[int]:
        """Return the number of entries in ``blocks[l]`` blocks of each group l."""
        return [count * step for count, step in zip(blocks, self.steps, strict=True)]


def check_blocks(budget: BlockBudget) -> None:
    """Raise a ValueError if one block of every group costs more than the total of the budget."""
    least = budget.cost(budget.steps)
    if budget.total < least:
        raise ValueError(
            f"density is {budget.density:g} and leaves {budget.total / budget.full:.3g} of the "
            f"network's cost, but one block of every group (round_to={max(budget.steps)}) and "
            f"what is not pruned already cost {least / budget.full:.3g}; take a greater density "
            "or a smaller round_to."
        )


def check_learns_rates(pattern: Pattern, control: str) -> None:
    """Raise an error unless the layers' densities can be learned under an n:m pattern.

    Args:
        pattern: pattern of the masks.
        control: how learned densities meet the budget: "held" by a projection, "hinge" by a
            penalty in the loss.

    Raises:
        ValueError: if the pattern fixes n, and with it the densities, or if ``control`` is not
            "held", the only one that rounds densities to n:m.
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


@dataclass(frozen=True, repr=False)
class PatternBudget(BlockBudget):
    """Budget for n:m patterns, where each layer keeps its own n of every ``m`` weights.

    A layer counts as m blocks, each of 1/m of its weights, and keeps n blocks, 1 <= n <= m.

    Attributes:
        m: number of consecutive weights of which n are kept; it divides the size of every layer.
    """

    m: int = 1

    @classmethod
    def of_every(cls, m: int, budget: Budget) -> PatternBudget:
        """Return ``budget`` restricted to layers that keep n of every ``m`` weights.

        Args:
            m: a divisor of the number of weights of every layer.
            budget: budget of weights, with a linear cost.

        Raises:
            ValueError: if keeping one of every ``m`` weights in each layer costs more than the
                total.
        """
        if budget.total * m < budget.full:
            raise ValueError(
                f"density is {budget.density}; a pattern n:{m} keeps at least 1 of every {m}, "
                f"so legal is 1/{m} to 1."
            )
        steps = tuple(size // m for size in budget.sizes)
        return cls(
            budget.sizes,
            budget.costs,
            budget.density,
            budget.total,
            most=budget.most,
            steps=steps,
            m=m,
        )

    def round(self, densities: Sequence[float]) -> list[int]:
        """Choose the n of every layer, 1 <= n <= m, so that the layers cost at most the total.

        The densities are multiplied by the common factor with which they cost the total. The n of
        the layers are then chosen to be closest to m times these densities (``nearest`` in this
        file). If the total allows, n is then increased, in the most expensive layers first.

        Args:
            densities: share of its weights that each layer should keep.

        Returns:
            list: number of kept weights of each layer, n / m of its weights.
        """
        blocks = self.blocks
        costs = blocks.costs
        counts = nearest(blocks.scaled(densities), costs, self.total, most=blocks.limits)
        left = self.total - blocks.cost(counts)
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            more = min(blocks.limits[i] - counts[i], int(left // costs[i]))
            counts[i] += more
            left -= more * costs[i]
        return self._entries(counts)


# The largest number of partial choices that ``nearest`` keeps. It runs at every step of the prune
# phase: with 64 it takes some milliseconds for 60 layers.
_WIDTH = 64


def nearest(
    wishes: Sequence[float], costs: Sequence[int], total: int, *, most: Sequence[int]
) -> list[int]:
    """Return the integers n_l, 1 <= n_l <= m_l, that are nearest to ``wishes`` at a limited cost.

    They minimise sum_l c_l (n_l - e_l)^2 subject to sum_l c_l n_l <= total. The method is dynamic
    programming over the layers, the most expensive first: after each layer, it keeps the choices
    for the layers so far that no other choice beats in both cost and distance. The result is exact
    if there are never more than 64 such choices; of more, it keeps 64.

    Args:
        wishes: e_l, the wanted n of each layer, not rounded, in (0, m_l].
        costs: c_l, cost of increasing n_l by 1.
        total: largest cost, at least sum_l c_l.
        most: m_l, the largest n of each layer.

    Returns:
        list: n_l, in the order of ``wishes``.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    reserve = sum(costs)
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for i in order:
        reserve -= costs[i]
        found = sorted(
            (spent + n * costs[i], off + costs[i] * (n - wishes[i]) ** 2, (*chosen, n))
            for spent, off, chosen in front
            for n in range(1, most[i] + 1)
            if spent + n * costs[i] + reserve <= total
        )
        front, least = [], math.inf
        for choice in found:
            if choice[1] < least:
                front.append(choice)
                least = choice[1]
        # Thinned out evenly by rank; the cheapest and the nearest choice always stay.
        apart = max(1.0, (len(front) - 1) / (_WIDTH - 1))
        front = [front[-1 - round(k * apart)] for k in range(min(_WIDTH, len(front)))][::-1]
    counts = dict(zip(order, front[-1][2], strict=True))
    return [counts[i] for i in range(len(costs))]
