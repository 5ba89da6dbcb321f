"""The budget: what may be kept in all, in parameters or FLOPs, and how rates are held to it.

Weights cost each on their own: sum_l c_l n_l. Channels cost together, since a convolution between
two groups has n_i n_j filters' entries: the sum gains products c_ij n_i n_j and what nobody prunes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.budget.rates import bisect
from robust_plugin.masks.select import kept_count

Unit = Literal["params", "flops", "channels"]


Products = tuple[tuple[int, int, int], ...]


# Beyond this a float32 sigmoid has no gradient left to come back with.
_MAX_LOGIT = 12.0


def check_density(density: float | None) -> float:
    """Return the density, or raise a ValueError unless 0 < density <= 1."""
    if isinstance(density, int | float) and not isinstance(density, bool) and 0 < density <= 1:
        return float(density)
    hint = " Densities by name go to rates=." if isinstance(density, Mapping) else ""
    raise ValueError(f"density is {density!r}; legal: 0 < density <= 1, the share kept.{hint}")


@dataclass(frozen=True)
class Budget:
    """How many entries each group has, what a kept one costs, and what may be kept in all.

    The cost of counts n is fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j; the last two terms are
    zero for weights.

    Attributes:
        sizes: n_l, the number of prunable entries of each group.
        costs: c_l, what one kept entry costs: for parameters 1 (a channel: its weights), for
            FLOPs multiply-adds.
        density: the share k.
        total: in parameters K = sum_l c_l max(1, n_l - int((1-k) n_l)), the uniform network's
            count; in FLOPs floor(k sum_l c_l n_l), or one entry a group where that is more.
            With products: floor(k full) in both units, and in channels what the network costs
            (in FLOPs) that keeps that share of every group's channels.
        products: (i, j, c_ij), c_ij > 0.
        fixed: what the network costs besides the groups.
        whole: that the cost is of a whole network, even where nothing couples or is fixed.
    """

    sizes: tuple[int, ...]
    costs: tuple[int, ...]
    density: float
    total: int
    products: Products = ()
    fixed: int = 0
    whole: bool = False

    @classmethod
    def of(
        cls, sizes: Sequence[int], costs: Sequence[int], density: float, *, unit: Unit = "params"
    ) -> Budget:
        """Return the budget of share ``density`` where entries cost each on their own.

        Raises:
            ValueError: as ``at``.
        """
        return cls(tuple(sizes), tuple(costs), 1.0, 0).at(density, unit)

    def at(self, density: float, unit: Unit) -> Budget:
        """Return the budget of share ``density`` over the same groups.

        Raises:
            ValueError: if the density is outside (0, 1], the unit is unknown or counts channels
                where there are none, or one channel a group costs more than the share.
        """
        density = check_density(density)
        if unit not in get_args(Unit):
            raise ValueError(f"budget is {unit!r}; legal: {', '.join(get_args(Unit))}.")
        if unit == "channels" and not self.coupled:
            raise ValueError(
                "budget is 'channels', but the groups do not say which filters make them; give "
                "groups=channel_groups(model, x[:1]), or take the budget 'params' or 'flops'."
            )
        least = self.cost([1] * len(self.sizes))
        if unit == "channels" or (unit == "params" and not self.coupled):
            total = self.cost([kept_count(n, density) for n in self.sizes])
        else:
            total = math.floor(density * self.full * (1 + 1e-12))
        if self.coupled and total < least:
            raise ValueError(
                f"density is {density:g}, but one channel of every group and what is not pruned "
                f"already cost {least / self.full:.3g} of the {unit}; legal: from there to 1."
            )
        return replace(self, density=density, total=int(max(least, total)))

    @property
    def full(self) -> int:
        """What the dense network costs."""
        return int(self.cost(self.sizes))

    @property
    def coupled(self) -> bool:
        """Whether the cost is of a whole network, where channels cost together."""
        return bool(self.whole or self.products or self.fixed)

    @property
    def goal(self) -> float:
        """The share of the cost that may be kept; the density unless that counts channels."""
        return self.total / self.full if self.coupled else self.density

    def cost(self, counts: Sequence[float]) -> float:
        """Return fixed + sum_l c_l count_l + sum_ij c_ij count_i count_j."""
        linear = sum(c * n for c, n in zip(self.costs, counts, strict=True))
        return self.fixed + linear + sum(c * counts[i] * counts[j] for i, j, c in self.products)

    def prices(self, counts: Sequence[float], *, more: int = 0) -> list[float]:
        """Return the derivative of the cost by each count, or (``more=1``) what one more costs."""
        found: list[float] = list(self.costs)
        for i, j, c in self.products:
            found[i] += c * counts[j]
            found[j] += c * counts[i]
            if i == j:
                found[i] += c * more  # (n + 1)^2 - n^2 = 2 n + 1
        return found

    def rescaled(self, total: float) -> Budget:
        """Return the same groups under another total."""
        return replace(self, total=math.floor(total))

    def scaled(self, densities: Sequence[float]) -> list[float]:
        """Scale densities by one common factor to cost the total, and return their counts.

        A count stays between one and its group's size.
        """
        wishes = [k * n for k, n in zip(densities, self.sizes, strict=True)]

        def scaled(factor: float) -> list[float]:
            each = zip(wishes, self.sizes, strict=True)
            return [min(max(factor * w, 1.0), float(n)) for w, n in each]

        factor = bisect(
            lambda f: self.cost(scaled(f)),
            self.total,
            low=0.0,
            high=2 / min(densities),
        )
        return scaled(factor)

    def round(self, densities: Sequence[float]) -> list[int]:
        """Round densities to whole counts, at least one a group, that meet the total.

        Densities are first scaled by one common factor to cost the total, then rounded down, and
        what is left goes to the largest remainders. With unit costs the sum is the total
        exactly; with others what is left is less than one more entry of any group would cost.
        """
        exact = self.scaled(densities)
        # The guard takes 2.9999999999 for the 3 it stands for.
        counts = [math.floor(e + 1e-9) for e in exact]
        by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
        if self.coupled:
            return spend(self, counts, by_remainder)
        left = self.total - self.cost(counts)
        for i in by_remainder:
            if self.costs[i] <= left and counts[i] < self.sizes[i]:
                counts[i] += 1
                left -= self.costs[i]
        # What is less than one dear entry still buys some cheap ones.
        for i in sorted(range(len(counts)), key=lambda i: -self.costs[i]):
            more = min(int(left // self.costs[i]), self.sizes[i] - counts[i])
            counts[i] += more
            left -= more * self.costs[i]
        return counts

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return the whole counts that densities ask for, on budget or not."""
        return [kept_count(n, k) for n, k in zip(self.sizes, densities, strict=True)]

    def hold(self, logits: Tensor, k_min: float) -> Tensor:
        """Project rate logits on the budget, so that sum_l c_l k_l n_l is the total.

        r_l <- r_l - x d_l with d_l = c_l n_l sigmoid'(r_l), the gradient of the sum (with
        products: c_l + sum_j c_lj k_j n_j for c_l), and x by bisection; no gradient passes. What
        a descent step of the loss gained is kept where it does not change the sum. (One common
        shift of all logits would also meet the budget, but comes to rest where the loss's
        gradients are equal instead of proportional to d.)

        Args:
            logits: r, float64 on the CPU, shape [groups].
            k_min: the least density.
        """
        share = logits.sigmoid()
        kept = (k_min + (1 - k_min) * share) * torch.tensor(self.sizes)
        prices = self.prices(kept.tolist())
        costs = torch.tensor([c * n for c, n in zip(prices, self.sizes, strict=True)])
        direction = costs * share * (1 - share)
        direction = direction / direction.max()

        def spent(x: float) -> float:
            return self.share(logits + x * direction, k_min) * self.full

        farthest = 2 * _MAX_LOGIT / float(direction.min())
        x = bisect(spent, self.total, low=-farthest, high=farthest)
        return (logits + x * direction).clamp(-_MAX_LOGIT, _MAX_LOGIT)

    def share(self, logits: Tensor, k_min: float) -> float:
        """Return sum_l c_l k_l n_l / sum_l c_l n_l for k_l = k_min + (1 - k_min) sigmoid(r_l).

        With products: the cost of the counts k_l n_l over that of n_l.
        """
        if self.coupled:
            kept = (k_min + (1 - k_min) * logits.sigmoid()) * torch.tensor(self.sizes)
            return self.cost(kept.tolist()) / self.full
        weights = torch.tensor(
            [c * n for c, n in zip(self.costs, self.sizes, strict=True)], dtype=torch.float64
        )
        return float((weights * (k_min + (1 - k_min) * logits.sigmoid())).sum() / self.full)

    def hinge(self, densities: Sequence[Tensor]) -> Tensor:
        """L_hw = max(sum_l c_l k_l n_l / (k sum_l c_l n_l) - 1, 0), HARP equation 5; a scalar.

        With products: the cost of the counts k_l n_l over the budget; in channels that is the
        uniform network's, as in the paper.
        """
        share = sum(
            (
                k * (c * n / self.full)
                for k, c, n in zip(densities, self.costs, self.sizes, strict=True)
            ),
            torch.zeros((), device=densities[0].device),
        )
        for i, j, c in self.products:
            weight = c * self.sizes[i] * self.sizes[j] / self.full
            share = share + densities[i] * densities[j] * weight
        return ((share + self.fixed / self.full) / self.goal - 1).clamp(min=0)


def rate_logit(density: float, k_min: float) -> float:
    """r = logit((k - k_min) / (1 - k_min)), kept finite at both ends (HARP, section 3.2)."""
    share = (density - k_min) / (1 - k_min)
    edge = 1 / (1 + math.exp(_MAX_LOGIT))
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))


# With less than this share of the budget left, no entry moves from one group to another.
_ENOUGH = 0.005


# How many entries a move takes from a group at most, and how many it gives to another. (With 2 and
# 4, blocks of 8 in four small groups missed the best counts by over 3 % three times as often.)
_GIVE, _TAKE = 8, 8


def spend(budget: Budget, counts: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return counts that cost as much of the total as small steps reach, and not more.

    One more to each group, in order; then, while anything is affordable, the step that leaves
    least: one more to a group, or, with more than half a per cent of the total left and nothing
    to add, a move of up to eight entries from a group to up to eight of another.

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
        steps = [(more[j], 0, 0, 1, j) for j in growing if more[j] <= left]
        if not steps and left > _ENOUGH * budget.total:
            steps = [step for step in _moves(budget, counts) if 0 < step[0] <= left]
        if not steps:
            return counts
        _, give, giver, take, taker = max(steps)
        counts[giver] -= give
        counts[taker] += take


def _moves(budget: Budget, counts: Sequence[int]) -> Iterator[tuple[float, int, int, int, int]]:
    """Yield what every small move costs more, and what it is: a from group i, b to group j.

    For cost f: b f_j - a f_i + b^2 c_jj + a^2 c_ii - a b c_ij, exact for a quadratic.
    """
    slopes = budget.prices(counts)
    squares = [0] * len(counts)
    between: dict[tuple[int, int], int] = {}
    for i, j, c in budget.products:
        if i == j:
            squares[i] += c
        else:
            between[i, j] = between[j, i] = between.get((i, j), 0) + c
    for i, n in enumerate(counts):
        for j, other in enumerate(counts):
            for a in range(1, min(_GIVE, n - 1) + 1) if i != j else ():
                for b in range(1, min(_TAKE, budget.sizes[j] - other) + 1):
                    price = b * slopes[j] - a * slopes[i] + b * b * squares[j] + a * a * squares[i]
                    yield price - a * b * between.get((i, j), 0), a, i, b, j
