"""The cost of a network as a quadratic function of its counts, and counts that spend a total.

The cost of weights is linear: every kept entry of group l costs c_l, whatever else is kept. The
cost of channels is not, because a convolution between groups i and j has n_i n_j kernels. ``Terms``
is this cost function, and ``spend`` rounds counts so that their cost comes close to a total.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# (i, j, c_ij): groups i and j together cost c_ij n_i n_j.
Products = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Terms:
    """Cost of keeping n_l entries of each group: fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j.

    Attributes:
        costs: c_l, one number per group.
        products: tuples (i, j, c_ij) with c_ij > 0; empty if the cost is linear.
        fixed: cost that does not depend on the counts.
    """

    costs: tuple[int, ...]
    products: Products = ()
    fixed: int = 0

    def cost(self, counts: Sequence[float]) -> float:
        """Return fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j for the counts n."""
        linear = sum(c * n for c, n in zip(self.costs, counts, strict=True))
        return self.fixed + linear + sum(c * counts[i] * counts[j] for i, j, c in self.products)

    def prices(self, counts: Sequence[float], *, more: int = 0) -> list[float]:
        """Return the derivative of the cost with respect to each count.

        Args:
            counts: n_l, one number per group.
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
    """Return counts whose cost is close to the total and never above it, found by small steps.

    First every group in ``order`` gets one more entry if that is affordable. Then the most
    expensive affordable step is taken, until there is none. A step adds one entry to a group. If no
    group can grow and more than half a per cent of the total is left, a step instead moves up to
    eight entries from one group to up to eight entries of another.

    Args:
        terms: cost function.
        sizes: largest count of each group.
        total: largest cost.
        counts: whole counts to start from, at least 1 per group, with a cost within the total.
        order: indices of all groups; the first groups get the first extra entries.
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
    """Yield every small move as (price, a, i, b, j): a entries leave group i, b enter group j.

    With the derivatives f of the cost, the price of a move is
    b f_j - a f_i + b^2 c_jj + a^2 c_ii - a b c_ij, which is exact because the cost is quadratic.
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
