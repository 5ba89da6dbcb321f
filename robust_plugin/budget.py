"""The budget: what may be kept in all, in parameters or FLOPs, and how rates are held to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.masks import kept_count
from robust_plugin.rates import bisect

Unit = Literal["params", "flops"]

# Beyond this a float32 sigmoid has no gradient left to come back with.
_MAX_LOGIT = 12.0


def check_density(density: float | None) -> float:
    """Return the density, or raise a ValueError unless 0 < density <= 1."""
    if isinstance(density, int | float) and 0 < density <= 1:
        return float(density)
    raise ValueError(f"density is {density!r}; legal: 0 < density <= 1, the share kept.")


@dataclass(frozen=True)
class Budget:
    """How many entries each group has, what a kept one costs, and what may be kept in all.

    Attributes:
        sizes: n_l, the number of prunable entries of each group.
        costs: c_l, what one kept entry costs: for parameters 1 (a channel: its weights), for
            FLOPs multiply-adds.
        density: the share k.
        total: in parameters K = sum_l c_l max(1, n_l - int((1-k) n_l)), the uniform network's
            count; in FLOPs floor(k sum_l c_l n_l), or one entry a group where that is more.
    """

    sizes: tuple[int, ...]
    costs: tuple[int, ...]
    density: float
    total: int

    @classmethod
    def of(
        cls, sizes: Sequence[int], costs: Sequence[int], density: float, *, unit: Unit = "params"
    ) -> Budget:
        """Return the budget of share ``density``.

        Raises:
            ValueError: if the density is outside (0, 1] or the unit is unknown.
        """
        density = check_density(density)
        if unit not in get_args(Unit):
            raise ValueError(f"budget is {unit!r}; legal: {', '.join(get_args(Unit))}.")
        if unit == "params":
            total = sum(c * kept_count(n, density) for c, n in zip(costs, sizes, strict=True))
        else:
            full = sum(c * n for c, n in zip(costs, sizes, strict=True))
            total = max(sum(costs), math.floor(density * full * (1 + 1e-12)))
        return cls(tuple(sizes), tuple(costs), density, total)

    @property
    def full(self) -> int:
        """What the dense network costs, sum_l c_l n_l."""
        return sum(c * n for c, n in zip(self.costs, self.sizes, strict=True))

    def cost(self, counts: Sequence[float]) -> float:
        """Return sum_l c_l count_l."""
        return sum(c * n for c, n in zip(self.costs, counts, strict=True))

    def rescaled(self, total: float) -> Budget:
        """Return the same groups under another total."""
        return replace(self, total=math.floor(total))

    def scaled(self, densities: Sequence[float]) -> list[float]:
        """Return counts, not whole yet, in the proportion of ``densities`` that meet the total."""
        wishes = [k * n for k, n in zip(densities, self.sizes, strict=True)]

        def by(factor: float) -> list[float]:
            each = zip(wishes, self.sizes, strict=True)
            return [min(max(factor * w, 1.0), float(n)) for w, n in each]

        high = 2 / min(densities)
        return by(bisect(lambda f: self.cost(by(f)), self.total, low=0.0, high=high))

    def round(self, densities: Sequence[float]) -> list[int]:
        """Round densities to whole counts, at least one a group, that meet the total.

        Densities are first scaled by one common factor to cost the total, then rounded down, and
        what is left goes to the largest remainders. With unit costs the sum is the total
        exactly; with others what is left is less than one more entry of any group would cost.
        """
        exact = self.scaled(densities)
        # The guard takes 2.9999999999 for the 3 it stands for.
        counts = [math.floor(e + 1e-9) for e in exact]
        left = self.total - self.cost(counts)
        by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
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

    def hold(self, logits: Tensor, k_min: float) -> Tensor:
        """Project rate logits on the budget, so that sum_l c_l k_l n_l is the total.

        r_l <- r_l - x d_l with d_l = c_l n_l sigmoid'(r_l), the gradient of the sum, and x by
        bisection; no gradient passes. What a descent step of the loss gained is kept where it
        does not change the sum. (One common shift of all logits would also meet the budget, but
        comes to rest where the loss's gradients are equal instead of proportional to d.)

        Args:
            logits: r, float64 on the CPU, shape [groups].
            k_min: the least density.
        """
        costs = torch.tensor([c * n for c, n in zip(self.costs, self.sizes, strict=True)])
        share = logits.sigmoid()
        direction = costs * share * (1 - share)
        direction = direction / direction.max()

        def spent(x: float) -> float:
            return self.share(logits + x * direction, k_min) * self.full

        farthest = 2 * _MAX_LOGIT / float(direction.min())
        x = bisect(spent, self.total, low=-farthest, high=farthest)
        return (logits + x * direction).clamp(-_MAX_LOGIT, _MAX_LOGIT)

    def share(self, logits: Tensor, k_min: float) -> float:
        """Return sum_l c_l k_l n_l / sum_l c_l n_l for k_l = k_min + (1 - k_min) sigmoid(r_l)."""
        weights = torch.tensor(
            [c * n for c, n in zip(self.costs, self.sizes, strict=True)], dtype=torch.float64
        )
        return float((weights * (k_min + (1 - k_min) * logits.sigmoid())).sum() / self.full)

    def hinge(self, densities: Sequence[Tensor]) -> Tensor:
        """L_hw = max(sum_l c_l k_l n_l / (k sum_l c_l n_l) - 1, 0), HARP equation 5; a scalar."""
        share = sum(
            (
                k * (c * n / self.full)
                for k, c, n in zip(densities, self.costs, self.sizes, strict=True)
            ),
            torch.zeros((), device=densities[0].device),
        )
        return (share / self.density - 1).clamp(min=0)


def rate_logit(density: float, k_min: float) -> float:
    """r = logit((k - k_min) / (1 - k_min)), kept finite at both ends (HARP, section 3.2)."""
    share = (density - k_min) / (1 - k_min)
    edge = 1 / (1 + math.exp(_MAX_LOGIT))
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))
