"""The cost of a network as a function of how many weights or channels each group keeps.

The cost of weights is linear: every kept weight of group l costs c_l, whatever else is kept. The
cost of channels is quadratic, because a convolution between groups that keep n_i and n_j channels
has n_i n_j kernels. ``Terms`` is this cost function, and ``spend`` increases whole counts until
their cost is close below a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# (i, j, c_ij): groups i and j together cost c_ij n_i n_j.
Products = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Terms:
    """Cost function fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j, if group l keeps n_l entries.

    The entries of a group are its weights or its channels.

    Attributes:
        costs: c_l, one per group.
        products: tuples (i, j, c_ij) with c_ij > 0, where i and j are indices of groups; empty if
            the cost is linear.
        fixed: cost that does not depend on what is kept.
    """

    costs: tuple[int, ...]
    products: Products = ()
    fixed: int = 0

    def cost(self, counts: Sequence[float]) -> float:
        """Return the cost of keeping n_l = ``counts[l]`` entries of each group l."""
        linear = sum(c * n for c, n in zip(self.costs, counts, strict=True))
        return self.fixed + linear + sum(c * counts[i] * counts[j] for i, j, c in self.products)

    def prices(self, counts: Sequence[float], *, more: int = 0) -> list[float]:
        """Return the derivative of the cost with respect to the count n_l of each group.

        Args:
            counts: n_l, number of kept entries of each group.
            more: 0 for the derivative; 1 for what one more entry of each group costs; -1 for what
                one entry less of each group saves.
        """
        found: list[float] = list(self.costs)
        for i, j, c in self.products:
            found[i] += c * counts[j]
            found[j] += c * counts[i]
            if i == j:
                found[i] += c * more  # (n + 1)^2 - n^2 = 2 n + 1
        return found


# Entries move between groups only while more than this share of the total is left.
_ENOUGH = 0.005

# The largest number of entries that one move takes from a group and gives to another. (With 2 and
# 4, blocks of 8 in four small groups missed the best counts by over 3 % three times as often.)
_GIVE, _TAKE = 8, 8


def spend(
    terms: Terms, sizes: Sequence[int], total: int, counts: Sequence[int], order: Sequence[int]
) -> list[int]:
    """Change how many entries each group keeps until the cost is close below ``total``.

    First every group, in the order of ``order``, keeps one more entry if the total allows that.
    Then the most expensive step that the total allows is taken again and again, until there is
    none. A step lets one group keep one more entry. If that is possible in no group and the cost is
    more than half a per cent of the total below it, a step instead takes up to eight entries from
    one group and gives up to eight to another.

    Args:
        terms: cost function.
        sizes: largest number of entries that each group can keep.
        total: largest cost.
        counts: number of kept entries of each group to start from, at least 1, with a cost of at
            most the total.
        order: indices of all groups.

    Returns:
        list: number of kept entries of each group, with a cost of at most the total.
    """
    counts = list(counts)
    for i in order:
        price = terms.prices(counts, more=1)[i]
        if counts[i] < sizes[i] and terms.cost(counts) + price <= total:
            counts[i] += 1
    while True:
        left = total - terms.cost(counts)
        more = terms.prices(counts, more=1)
        growing = [j for j, n in enumerate(counts) if n < sizes[j]]
        steps = [(more[j], 0, 0, 1, j) for j in growing if more[j] <= left]
        if not steps and left > _ENOUGH * total:
            steps = [step for step in _moves(terms, sizes, counts) if 0 < step[0] <= left]
        if not steps:
            return counts
        _, give, giver, take, taker = max(steps)
        counts[giver] -= give
        counts[taker] += take


def _moves(
    terms: Terms, sizes: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[float, int, int, int, int]]:
    """Yield (price, a, i, b, j) for every move of up to 8 entries between two groups.

    Group i keeps a entries less, and group j keeps b more. The price is the change of the cost. It
    is b f_j - a f_i + b^2 c_jj + a^2 c_ii - a b c_ij with the derivatives f of the cost, exactly,
    because the cost is quadratic.

    Args:
        terms: cost function.
        sizes: largest number of entries that each group can keep.
        counts: number of entries that each group keeps before the move.
    """
    slopes = terms.prices(counts)
    squares = [0] * len(counts)
    between: dict[tuple[int, int], int] = {}
    for i, j, c in terms.products:
        if i == j:
            squares[i] += c
        else:
            between[i, j] = between[j, i] = between.get((i, j), 0) + c
    for i, n in enumerate(counts):
        for j, other in enumerate(counts):
            for a in range(1, min(_GIVE, n - 1) + 1) if i != j else ():
                for b in range(1, min(_TAKE, sizes[j] - other) + 1):
                    price = b * slopes[j] - a * slopes[i] + b * b * squares[j] + a * a * squares[i]
                    yield price - a * b * between.get((i, j), 0), a, i, b, j
