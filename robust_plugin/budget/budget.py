"""The budget: how much of a network may be kept in total, in parameters, FLOPs or channels.

``Budget`` holds the largest cost that may be kept, and the cost of each kept weight or channel. It
turns layer densities into counts of weights or channels with at most this cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.budget.density_logits import MAX_LOGIT, rate_logit
from robust_plugin.budget.quadratic import Products, Terms, spend
from robust_plugin.budget.rates import bisect
from robust_plugin.masks.select import kept_count
from robust_plugin.runtime.values import is_number

Unit = Literal["params", "flops", "channels"]


def check_density(density: float | None) -> float:
    """Return ``density`` as a float; raise a ValueError unless it is a number in (0, 1]."""
    hint = ""
    if density is not None and is_number(density):
        if 0 < density <= 1:
            return float(density)
        if 1 < density <= 100:
            hint = f" {density:g} % is density={density / 100:g}."
    if isinstance(density, Mapping):
        hint = " Densities by name go to rates=."
    if isinstance(density, str):
        hint = " Give a number, without quotes."
    raise ValueError(f"density is {density!r}; legal: 0 < density <= 1, the share kept.{hint}")


@dataclass(frozen=True)
class Budget:
    """The largest cost that pruning may keep, and the cost of keeping n_l entries of each group l.

    Group l is a set of weights or channels with one mask, and its entries are these weights or
    channels. Keeping n_l of them in each group costs
    fixed + sum_l c_l n_l + sum_ij c_ij n_i n_j. For weights the cost is linear: ``fixed`` is 0 and
    there are no products.

    Attributes:
        sizes: number of entries of each group in the dense network.
        costs: c_l, cost of one kept entry of each group. In FLOPs it is a number of multiply-adds.
            In parameters it is 1, or the number of weights per channel in a group of channels.
        density: k, share of the dense network that may be kept, in (0, 1].
        total: K, largest cost that may be kept. For weights in parameters it is the count of the
            uniformly pruned network, K = sum_l c_l max(1, N_l - int((1-k) N_l)) with N_l the size
            of group l. For weights in FLOPs it is floor(k sum_l c_l N_l), or the cost of one entry
            per group if that is more. For coupled channels it is floor(k full) in parameters and
            in FLOPs; in channels it is the cost, in FLOPs, of the network that keeps the share k
            of every group's channels.
        products: tuples (i, j, c_ij) with c_ij > 0, where i and j are indices of groups; empty for
            weights.
        fixed: cost of the parts of the network that belong to no group.
        whole: True if the cost covers the whole network and not only the groups, even if
            ``products`` is empty and ``fixed`` is 0.
        most: largest number of entries that each group may keep, because the others are pruned for
            good; empty for all of its entries.
    """

    sizes: tuple[int, ...]
    costs: tuple[int, ...]
    density: float
    total: int
    products: Products = ()
    fixed: int = 0
    whole: bool = False
    most: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Return one line: the number of groups, the density, and the largest cost."""
        return (
            f"{type(self).__name__}({len(self.sizes)} groups, density {self.density:.4g}, at most "
            f"{self.total:,} of {self.full:,})"
        )

    @classmethod
    def of(
        cls, sizes: Sequence[int], costs: Sequence[int], density: float, *, unit: Unit = "params"
    ) -> Budget:
        """Return a budget for groups with a linear cost (single weights).

        Args:
            sizes: number of entries of each group.
            costs: cost of one kept entry of each group.
            density: share of the dense network that may be kept, in (0, 1].
            unit: what the costs count: "params" or "flops".

        Raises:
            ValueError: if the density is outside of (0, 1], or the unit is not "params" or "flops".
        """
        return cls(tuple(sizes), tuple(costs), 1.0, 0).at(density, unit)

    def at(self, density: float, unit: Unit) -> Budget:
        """Return the budget that may keep the share ``density`` of the same groups.

        Args:
            density: share of the dense network that may be kept, in (0, 1].
            unit: what the budget counts: "params", "flops" or "channels".

        Raises:
            ValueError: if the density is outside of (0, 1], the unit is unknown, the unit is
                "channels" and the groups are not coupled channels, or a network with one channel
                per group costs more than this share.
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
    def limits(self) -> tuple[int, ...]:
        """The largest number of entries that each group may keep: ``most``, or its size."""
        return self.most or self.sizes

    @property
    def terms(self) -> Terms:
        """The cost as a function of how many entries each group keeps."""
        return Terms(self.costs, self.products, self.fixed)

    @property
    def full(self) -> int:
        """The cost of the dense network."""
        return int(self.cost(self.sizes))

    @property
    def coupled(self) -> bool:
        """Whether ``cost`` is that of a whole network, pruned by channels that share layers."""
        return bool(self.whole or self.products or self.fixed)

    @property
    def goal(self) -> float:
        """The share of ``full`` that may be kept: total / full if coupled, else ``density``."""
        return self.total / self.full if self.coupled else self.density

    def cost(self, counts: Sequence[float]) -> float:
        """Return the cost of keeping ``counts[l]`` entries of each group l."""
        return self.terms.cost(counts)

    def prices(self, counts: Sequence[float], *, more: int = 0) -> list[float]:
        """Return how much the cost changes with the count of each group, one number per group.

        Args:
            counts: number of kept entries of each group.
            more: 0 for the derivative; 1 for the cost of one more entry in that group alone; -1 for
                the cost saved by one entry fewer in that group alone.
        """
        return self.terms.prices(counts, more=more)

    def rescaled(self, total: float) -> Budget:
        """Return this budget with ``total``, rounded down, as the largest cost that may be kept."""
        return replace(self, total=math.floor(total))

    def scaled(self, densities: Sequence[float]) -> list[float]:
        """Scale densities by a common factor to the total cost, and return them as counts.

        Args:
            densities: share of its entries that each group should keep.

        Returns:
            list: number of kept entries of each group, not rounded, from 1 to its limit.
        """
        wishes = [k * n for k, n in zip(densities, self.sizes, strict=True)]

        def counts(factor: float) -> list[float]:
            each = zip(wishes, self.limits, strict=True)
            return [min(max(factor * w, 1.0), float(n)) for w, n in each]

        high = 2 / min(densities)
        return counts(bisect(lambda f: self.cost(counts(f)), self.total, low=0.0, high=high))

    def round(self, densities: Sequence[float]) -> list[int]:
        """Turn densities into whole numbers of kept entries that cost at most the total.

        The densities are multiplied by the common factor with which they cost the total, and the
        counts are rounded down. The cost that is still unused is spent on one more entry each for
        the groups that lost most by rounding, and then on entries of any group while they are
        affordable. If every entry costs 1, the counts sum to the total exactly.

        Args:
            densities: share of its entries that each group should keep.

        Returns:
            list: number of kept entries of each group, at least 1.
        """
        exact = self.scaled(densities)
        # The small number rounds 2.9999999999 to the 3 that it stands for.
        counts = [math.floor(e + 1e-9) for e in exact]
        by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
        if self.coupled:
            return spend(self.terms, self.limits, self.total, counts, by_remainder)
        left = self.total - self.cost(counts)
        for i in by_remainder:
            if self.costs[i] <= left and counts[i] < self.limits[i]:
                counts[i] += 1
                left -= self.costs[i]
        # What is left may be too little for one expensive entry and enough for some cheap ones.
        for i in sorted(range(len(counts)), key=lambda i: -self.costs[i]):
            more = min(int(left // self.costs[i]), self.limits[i] - counts[i])
            counts[i] += more
            left -= more * self.costs[i]
        return counts

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return how many entries each group keeps at these densities, without regard to the total.

        Each count is max(1, n - int((1 - k) n)) for a group of n entries at density k, and no
        more than the group's limit.
        """
        each = zip(self.sizes, densities, self.limits, strict=True)
        return [min(kept_count(n, k), limit) for n, k, limit in each]

    def hold(self, logits: Tensor, k_min: float) -> Tensor:
        """Return logits of layer densities, moved so that the densities cost exactly the total.

        The density of group l is k_l = k_min + (1 - k_min) sigmoid(r_l), and the cost is
        sum_l c_l k_l n_l with n_l the size of the group. The projection is r_l <- r_l - x d_l with
        d_l = c_l n_l sigmoid'(r_l), the gradient of the cost, and with x found by bisection. If the
        budget has products, c_l + sum_j c_lj k_j n_j takes the place of c_l. No gradient passes
        through the projection. Of a descent step, it keeps the part that does not change the cost.
        (One common shift of all logits would also meet the budget, but it comes to rest where the
        loss's gradients are equal instead of proportional to d.) No density exceeds the limit of
        its group.

        Args:
            logits: r, one per group, float64 on the CPU, shape [groups].
            k_min: least density of a group.

        Returns:
            Tensor: the projected logits, same shape.
        """
        share = logits.sigmoid()
        kept = (k_min + (1 - k_min) * share) * torch.tensor(self.sizes)
        prices = self.prices(kept.tolist())
        costs = torch.tensor([c * n for c, n in zip(prices, self.sizes, strict=True)])
        direction = costs * share * (1 - share)
        direction = direction / direction.max()

        highest = torch.full_like(logits, MAX_LOGIT)
        if self.most:
            each = zip(self.most, self.sizes, strict=True)
            ends = [rate_logit(n / size, k_min) for n, size in each]
            highest = torch.tensor(ends, dtype=logits.dtype)

        def moved(x: float) -> Tensor:
            return torch.minimum(logits + x * direction, highest)

        def spent(x: float) -> float:
            return self.share(moved(x), k_min) * self.full

        farthest = 2 * MAX_LOGIT / float(direction.min())
        x = bisect(spent, self.total, low=-farthest, high=farthest)
        return moved(x).clamp(min=-MAX_LOGIT)

    def share(self, logits: Tensor, k_min: float) -> float:
        """Return the share of the dense network's cost that is kept at the densities of logits.

        It is sum_l c_l k_l n_l / sum_l c_l n_l for densities k_l = k_min + (1 - k_min) sigmoid(r_l)
        and groups of n_l entries. If the cost is coupled, it is the cost of keeping k_l n_l entries
        over the cost of keeping n_l.

        Args:
            logits: r, one per group, float64 on the CPU, shape [groups].
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
        """Return by how much densities exceed the budget, relative to it; 0 if they do not.

        It is L_hw = max(sum_l c_l k_l n_l / (k sum_l c_l n_l) - 1, 0), HARP equation 5, for groups
        of n_l entries. If the cost is coupled, it is the cost of keeping k_l n_l entries over the
        total, minus 1, and at least 0. For a budget in channels the total is the cost of the
        uniformly pruned network, as in the paper.

        Args:
            densities: k_l, one scalar tensor per group.

        Returns:
            Tensor: L_hw, a scalar that is differentiable with respect to the densities.
        """
        each = zip(densities, self.costs, self.sizes, strict=True)
        zero = torch.zeros((), device=densities[0].device)
        share = sum((k * (c * n / self.full) for k, c, n in each), zero)
        for i, j, c in self.products:
            weight = c * self.sizes[i] * self.sizes[j] / self.full
            share = share + densities[i] * densities[j] * weight
        return ((share + self.fixed / self.full) / self.goal - 1).clamp(min=0)
