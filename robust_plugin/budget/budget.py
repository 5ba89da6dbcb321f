"""The budget: how much of a network may be kept in all, in parameters, FLOPs or channels.

``Budget`` holds the cost of kept entries, linear for weights and quadratic for channels
(``quadratic.py``), and the total. It turns densities and rate logits into counts that meet the
total.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.budget.logits import MAX_LOGIT
from robust_plugin.budget.quadratic import Products, Terms, spend
from robust_plugin.budget.rates import bisect
from robust_plugin.masks.select import kept_count

Unit = Literal["params", "flops", "channels"]


def check_density(density: float | None) -> float:
    """Return the density, or raise a ValueError unless 0 < density <= 1."""
    if isinstance(density, int | float) and not isinstance(density, bool) and 0 < density <= 1:
        return float(density)
    hint = " Densities by name go to rates=." if isinstance(density, Mapping) else ""
    raise ValueError(f"density is {density!r}; legal: 0 < density <= 1, the share kept.{hint}")


@dataclass(frozen=True)
class Budget:
    """Sizes of all groups, the cost of kept entries, and the total cost that may be kept.

    The cost of counts n is fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j. For weights it is linear:
    ``fixed`` is 0 and there are no products.

    Attributes:
        sizes: n_l, number of prunable entries of each group.
        costs: c_l, cost of one kept entry of each group. In FLOPs it is a number of multiply-adds.
            In parameters it is 1, or the number of weights per channel in a group of channels.
        density: k, share that may be kept, in (0, 1].
        total: K, largest cost that may be kept. For weights in parameters it is the count of the
            uniformly pruned network, K = sum_l c_l max(1, n_l - int((1-k) n_l)). For weights in
            FLOPs it is floor(k sum_l c_l n_l), or the cost of one entry per group if that is more.
            For coupled channels it is floor(k full) in parameters and in FLOPs; in channels it is
            the cost, in FLOPs, of the network that keeps the share k of every group's channels.
        products: tuples (i, j, c_ij) with c_ij > 0; empty for weights.
        fixed: cost of the network besides the groups.
        whole: True if the cost is that of a whole network, even if ``products`` is empty and
            ``fixed`` is 0.
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
        """Return the budget of share ``density`` for groups with a linear cost.

        Raises:
            ValueError: if the density is outside of (0, 1], or the unit is not "params" or "flops".
        """
        return cls(tuple(sizes), tuple(costs), 1.0, 0).at(density, unit)

    def at(self, density: float, unit: Unit) -> Budget:
        """Return the budget of share ``density`` over the same groups.

        Args:
            density: share that may be kept, in (0, 1].
            unit: what the budget counts: "params", "flops" or "channels".

        Raises:
            ValueError: if the density is outside of (0, 1], the unit is unknown, the unit is
                "channels" and the groups are not coupled channels, or one channel per group costs
                more than the share.
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
    def terms(self) -> Terms:
        """The cost as a function of the counts."""
        return Terms(self.costs, self.products, self.fixed)

    @property
    def full(self) -> int:
        """The cost of the dense network."""
        return int(self.cost(self.sizes))

    @property
    def coupled(self) -> bool:
        """Whether the cost is that of a whole network, in which groups of channels share layers."""
        return bool(self.whole or self.products or self.fixed)

    @property
    def goal(self) -> float:
        """The share of the cost that may be kept: the density, unless that counts channels."""
        return self.total / self.full if self.coupled else self.density

    def cost(self, counts: Sequence[float]) -> float:
        """Return the cost of keeping so many entries of each group."""
        return self.terms.cost(counts)

    def prices(self, counts: Sequence[float], *, more: int = 0) -> list[float]:
        """Return the derivative of the cost by each count; with ``more=1``, what one more costs."""
        return self.terms.prices(counts, more=more)

    def rescaled(self, total: float) -> Budget:
        """Return the budget of the same groups with another total, rounded down."""
        return replace(self, total=math.floor(total))

    def scaled(self, densities: Sequence[float]) -> list[float]:
        """Scale densities by one common factor to cost the total, and return their exact counts.

        The counts are not rounded. Each stays between 1 and the size of its group.
        """
        wishes = [k * n for k, n in zip(densities, self.sizes, strict=True)]

        def counts(factor: float) -> list[float]:
            each = zip(wishes, self.sizes, strict=True)
            return [min(max(factor * w, 1.0), float(n)) for w, n in each]

        high = 2 / min(densities)
        return counts(bisect(lambda f: self.cost(counts(f)), self.total, low=0.0, high=high))

    def round(self, densities: Sequence[float]) -> list[int]:
        """Return whole counts for densities, at least 1 per group, that meet the total.

        The densities are scaled by one common factor to cost the total and the counts are rounded
        down. What is left then goes to the groups with the largest remainders. With unit costs the
        sum of the counts is the total exactly. With other costs, what is left is less than one more
        entry of any group would cost.
        """
        exact = self.scaled(densities)
        # The small number rounds 2.9999999999 to the 3 that it stands for.
        counts = [math.floor(e + 1e-9) for e in exact]
        by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
        if self.coupled:
            return spend(self.terms, self.sizes, self.total, counts, by_remainder)
        left = self.total - self.cost(counts)
        for i in by_remainder:
            if self.costs[i] <= left and counts[i] < self.sizes[i]:
                counts[i] += 1
                left -= self.costs[i]
        # What is left may be too little for one expensive entry and enough for some cheap ones.
        for i in sorted(range(len(counts)), key=lambda i: -self.costs[i]):
            more = min(int(left // self.costs[i]), self.sizes[i] - counts[i])
            counts[i] += more
            left -= more * self.costs[i]
        return counts

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return the whole counts that densities ask for, whether or not they meet the total."""
        return [kept_count(n, k) for n, k in zip(self.sizes, densities, strict=True)]

    def hold(self, logits: Tensor, k_min: float) -> Tensor:
        """Project rate logits onto the budget, so that sum_l c_l k_l n_l is the total.

        Here k_l = k_min + (1 - k_min) sigmoid(r_l). The projection is r_l <- r_l - x d_l with
        d_l = c_l n_l sigmoid'(r_l), the gradient of the sum, and with x found by bisection. With
        products, c_l + sum_j c_lj k_j n_j takes the place of c_l. No gradient passes through the
        projection. It keeps the part of a descent step that does not change the sum. (One common
        shift of all logits would also meet the budget, but it comes to rest where the loss's
        gradients are equal instead of proportional to d.)

        Args:
            logits: r, float64 on the CPU, shape [groups].
            k_min: least density of a group.
        """
        share = logits.sigmoid()
        kept = (k_min + (1 - k_min) * share) * torch.tensor(self.sizes)
        prices = self.prices(kept.tolist())
        costs = torch.tensor([c * n for c, n in zip(prices, self.sizes, strict=True)])
        direction = costs * share * (1 - share)
        direction = direction / direction.max()

        def spent(x: float) -> float:
            return self.share(logits + x * direction, k_min) * self.full

        farthest = 2 * MAX_LOGIT / float(direction.min())
        x = bisect(spent, self.total, low=-farthest, high=farthest)
        return (logits + x * direction).clamp(-MAX_LOGIT, MAX_LOGIT)

    def share(self, logits: Tensor, k_min: float) -> float:
        """Return the share of the full cost that rate logits keep.

        It is sum_l c_l k_l n_l / sum_l c_l n_l for k_l = k_min + (1 - k_min) sigmoid(r_l). With
        products it is the cost of the counts k_l n_l over the cost of n_l.

        Args:
            logits: r, float64 on the CPU, shape [groups].
            k_min: least density of a group.
        """
        if self.coupled:
            kept = (k_min + (1 - k_min) * logits.sigmoid()) * torch.tensor(self.sizes)
            return self.cost(kept.tolist()) / self.full
        weights = torch.tensor(
            [c * n for c, n in zip(self.costs, self.sizes, strict=True)], dtype=torch.float64
        )
        return float((weights * (k_min + (1 - k_min) * logits.sigmoid())).sum() / self.full)

    def hinge(self, densities: Sequence[Tensor]) -> Tensor:
        """Return L_hw = max(sum_l c_l k_l n_l / (k sum_l c_l n_l) - 1, 0), HARP equation 5.

        With products it is the cost of the counts k_l n_l over the total, minus 1, and at least 0.
        In channels the total is the cost of the uniformly pruned network, as in the paper.

        Args:
            densities: k_l, one scalar tensor per group; L_hw is differentiable by them.
        """
        each = zip(densities, self.costs, self.sizes, strict=True)
        zero = torch.zeros((), device=densities[0].device)
        share = sum((k * (c * n / self.full) for k, c, n in each), zero)
        for i, j, c in self.products:
            weight = c * self.sizes[i] * self.sizes[j] / self.full
            share = share + densities[i] * densities[j] * weight
        return ((share + self.fixed / self.full) / self.goal - 1).clamp(min=0)
