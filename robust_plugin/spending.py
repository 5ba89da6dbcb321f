"""Spending what rounding left of a budget, where entries cost together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_plugin.budget import Budget

# With less than this share of the budget left, no entry moves from one group to another.
_ENOUGH = 0.005


def spend(budget: Budget, counts: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return counts that cost as much of the total as single steps reach, and not more.

    One more to each group, in order; then, while anything is affordable, the step that leaves
    least: one more to a group, or, with more than half a per cent of the total left and nothing
    to add, one entry moved from a group to a dearer one.

    Args:
        budget: sizes, costs and total.
        counts: whole, at least one each, within the total.
        order: the groups, those of largest remainder first.
    """
    counts = list(counts)
    for i in order:
        price = budget.prices(counts, more=1)[i]
        if counts[i] < budget.sizes[i] and budget.cost(counts) + price <= budget.total:
            counts[i] += 1
    while True:
        left = budget.total - budget.cost(counts)
        more = budget.prices(counts, more=1)
        growing = [j for j, n in enumerate(counts) if n < budget.sizes[j]]
        steps = [(more[j], -1, j) for j in growing if more[j] <= left]
        if not steps and left > _ENOUGH * budget.total:
            steps = [step for step in _moves(budget, counts, growing) if 0 < step[0] <= left]
        if not steps:
            return counts
        _, giver, taker = max(steps)
        counts[taker] += 1
        if giver >= 0:
            counts[giver] -= 1


def _moves(
    budget: Budget, counts: Sequence[int], growing: Sequence[int]
) -> list[tuple[float, int, int]]:
    """Return (what it costs more, giver, taker) of every move of one entry between two groups."""
    more, less = budget.prices(counts, more=1), budget.prices(counts, more=-1)
    shared: dict[tuple[int, int], int] = {}  # by how much one of i less makes one of j cheaper
    for i, j, c in budget.products:
        shared[i, j] = shared.get((i, j), 0) + c
        shared[j, i] = shared.get((j, i), 0) + c
    return [
        (more[j] - less[i] - shared.get((i, j), 0), i, j)
        for i, n in enumerate(counts)
        for j in growing
        if i != j and n > 1
    ]
