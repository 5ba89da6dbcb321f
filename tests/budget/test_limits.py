"""``Budget.most``: groups of which a part is pruned for good, against brute force."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from robust_plugin import Budget
from robust_plugin.budget.budget import Unit
from robust_plugin.budget.density_logits import rate_logit
from robust_plugin.budget.patterns_and_blocks import BlockBudget, PatternBudget, nearest
from robust_plugin.masks.select import kept_count


def limited(
    draw: random.Random, *, largest: int = 40, costs: tuple[int, ...] = (1,)
) -> tuple[Budget, tuple[int, ...]]:
    """A budget whose groups may keep a part of their entries, which is more than the total."""
    sizes = tuple(draw.randint(2, largest) for _ in range(draw.randint(1, 4)))
    each = tuple(draw.choice(costs) for _ in sizes)
    most = tuple(draw.randint(1, n) for n in sizes)
    full = Budget(sizes, each, 1.0, 0, most=most)
    total = draw.randint(sum(each), int(full.cost(most)))
    return replace(full, density=total / full.full, total=total), most


def within(budget: Budget, most: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All counts within limits and total."""
    choices = itertools.product(*(range(1, n + 1) for n in most))
    return [counts for counts in choices if budget.cost(counts) <= budget.total]


def test_without_limits_every_entry_may_be_kept() -> None:
    budget = Budget.of([3, 5], [1, 1], 0.5)
    assert budget.most == () and budget.limits == (3, 5)
    assert replace(budget, most=(2, 4)).limits == (2, 4)
    assert replace(budget, most=(2, 4)).at(0.9, "params").limits == (2, 4)
    assert replace(budget, most=(2, 4)).rescaled(4).limits == (2, 4)
    assert replace(budget, most=(3, 5)).round([0.1, 0.9]) == budget.round([0.1, 0.9])


def test_scaling_shares_one_factor_among_the_groups_that_are_at_no_bound() -> None:
    draw, bound = random.Random(0), 0
    for _ in range(300):
        budget, most = limited(draw, costs=(1, 3, 16))
        wishes = [10 ** draw.uniform(-2, 0) for _ in most]
        exact = budget.scaled(wishes)
        assert budget.cost(exact) == pytest.approx(budget.total, rel=1e-9)
        asked = [k * n for k, n in zip(wishes, budget.sizes, strict=True)]
        each = list(zip(exact, asked, most, strict=True))
        assert all(1 <= e <= n for e, _, n in each)
        factors = [e / w for e, w, n in each if 1 < e < n]
        if factors:
            assert factors == pytest.approx([factors[0]] * len(factors), rel=1e-6)
            # Those at their least or most would go beyond it by the same factor.
            assert all(factors[0] * w >= n * (1 - 1e-6) for e, w, n in each if e == n > 1)
            assert all(factors[0] * w <= 1 + 1e-6 for e, w, n in each if e == 1 < n)
            bound += any(e == n > 1 for e, _, n in each)
    assert bound > 50


def test_rounding_spends_all_that_limits_allow() -> None:
    draw = random.Random(1)
    for _ in range(300):
        budget, most = limited(draw)
        counts = budget.round([10 ** draw.uniform(-2, 0) for _ in most])
        assert all(1 <= n <= limit for n, limit in zip(counts, most, strict=True))
        assert sum(counts) == budget.total
    # Where the limits allow less than the total, every group is at its limit.
    budget = Budget((10, 10), (1, 1), 0.9, 18, most=(4, 5))
    assert budget.round([0.1, 0.9]) == [4, 5]


def test_rounding_with_costs_leaves_no_entry_that_fits() -> None:
    draw = random.Random(2)
    for _ in range(200):
        budget, most = limited(draw, largest=6, costs=(1, 4, 7, 16))
        counts = budget.round([10 ** draw.uniform(-2, 0) for _ in most])
        assert tuple(counts) in within(budget, most)
        left = budget.total - budget.cost(counts)
        each = zip(counts, most, budget.costs, strict=True)
        assert all(n == limit or cost > left for n, limit, cost in each)


def test_what_densities_ask_for_ends_at_the_limits() -> None:
    draw = random.Random(3)
    for _ in range(200):
        budget, most = limited(draw)
        wishes = [10 ** draw.uniform(-2, 0) for _ in most]
        each = zip(budget.sizes, wishes, most, strict=True)
        assert budget.asked(wishes) == [min(kept_count(n, k), limit) for n, k, limit in each]


def densities(logits: torch.Tensor, k_min: float) -> list[float]:
    found: list[float] = (k_min + (1 - k_min) * logits.sigmoid()).tolist()
    return found


def test_holding_meets_the_total_and_no_density_exceeds_its_limit() -> None:
    draw, bound = random.Random(4), 0
    for _ in range(200):
        sizes = [draw.choice([20, 500, 40_000]) for _ in range(draw.randint(2, 6))]
        costs = [draw.choice([1, 16]) for _ in sizes]
        most = tuple(draw.randint(n // 4, n) for n in sizes)
        dense = Budget(tuple(sizes), tuple(costs), 1.0, 0, most=most)
        share = draw.uniform(0.3, 0.95) * dense.cost(most) / dense.full
        budget = dense.at(share, "flops")
        k_min = 0.1 * share
        given = [draw.uniform(-4, 4) for _ in sizes]
        held = budget.hold(torch.tensor(given, dtype=torch.float64), k_min)
        if float(held.abs().max()) >= 12:  # bounded, for float32's sake
            continue
        found = densities(held, k_min)
        highest = [limit / n for limit, n in zip(most, sizes, strict=True)]
        assert all(k <= high * (1 + 1e-9) for k, high in zip(found, highest, strict=True))
        cost = sum(c * n * k for c, n, k in zip(costs, sizes, found, strict=True))
        assert cost == pytest.approx(budget.total, rel=1e-9)
        # Below its limit, a logit moves by the same multiple of the gradient of the cost. One at
        # its limit would go beyond by this multiple.
        slopes = [
            c * n / (1 + math.exp(-r)) / (1 + math.exp(r))
            for c, n, r in zip(costs, sizes, given, strict=True)
        ]
        ends = [rate_logit(k, k_min) for k in highest]
        moves = list(zip(given, held.tolist(), slopes, ends, strict=True))
        free = [(after - r) / slope for r, after, slope, end in moves if after < end - 1e-9]
        assert free, "the total is below what the limits allow"
        assert free == pytest.approx([free[0]] * len(free), rel=1e-6, abs=1e-12)
        at_end = [(r, s, end) for r, after, s, end in moves if after >= end - 1e-9]
        assert all(r + free[0] * s >= end - 1e-6 for r, s, end in at_end)
        bound += bool(at_end)
    assert bound > 50


def test_holding_at_the_limits_themselves() -> None:
    """As at the first step after a shrink phase, where every group is at its limit."""
    sizes, most = (72, 288, 1280), (60, 100, 20)
    dense = Budget(sizes, (1, 1, 1), 1.0, 0, most=most)
    budget = dense.at(0.05, "params").rescaled(sum(most))
    k_min = 0.005
    logits = [rate_logit(m / n, k_min) for m, n in zip(most, sizes, strict=True)]
    held = budget.hold(torch.tensor(logits, dtype=torch.float64), k_min)
    assert held.tolist() == pytest.approx(logits, abs=1e-6)
    assert budget.round(densities(held, k_min)) == list(most)


def test_blocks_within_limits_as_by_trying_all() -> None:
    draw, checked = random.Random(5), 0
    for _ in range(150):
        steps = tuple(draw.choice([1, 2, 4]) for _ in range(draw.randint(1, 3)))
        sizes = tuple(step * draw.randint(1, 5) for step in steps)
        most = tuple(s * draw.randint(1, n // s) for s, n in zip(steps, sizes, strict=True))
        costs = tuple(draw.choice([1, 3, 9]) for _ in sizes)
        budget = BlockBudget(sizes, costs, 1.0, 0, most=most, steps=steps)
        total = draw.randint(int(budget.cost(steps)), int(budget.cost(most)))
        budget = replace(budget, total=total, density=total / budget.full)
        wishes = [draw.uniform(0.1, 1) for _ in sizes]
        counts, every = budget.round(wishes), within(budget, most)
        fits = {c for c in every if not any(n % s for n, s in zip(c, steps, strict=True))}
        assert tuple(counts) in fits
        left = total - budget.cost(counts)
        each = zip(counts, most, costs, steps, strict=True)
        assert all(n == limit or c * s > left for n, limit, c, s in each)
        each = zip(budget.asked(wishes), most, steps, strict=True)
        assert all(n <= limit and n % s == 0 for n, limit, s in each)
        checked += any(n == limit for n, limit in zip(counts, most, strict=True))
    assert checked > 50


def distance(counts: tuple[int, ...], wishes: list[float], costs: list[int]) -> float:
    return sum(c * (n - e) ** 2 for c, n, e in zip(costs, counts, wishes, strict=True))


def test_patterns_within_limits_are_the_nearest_of_all() -> None:
    draw = random.Random(6)
    for _ in range(150):
        m = draw.choice([2, 4, 8])
        costs = [draw.choice([1, 2, 9, 64]) for _ in range(draw.randint(1, 4))]
        limits = [draw.randint(1, m) for _ in costs]
        total = draw.randint(sum(costs), sum(c * n for c, n in zip(costs, limits, strict=True)))
        wishes = [draw.uniform(1, m) for _ in costs]

        budget = Budget(tuple(m for _ in costs), tuple(costs), 1.0, total)
        legal = within(budget, tuple(limits))
        found = tuple(nearest(wishes, costs, total, most=limits))
        assert found in legal
        least = min(distance(each, wishes, costs) for each in legal)
        assert distance(found, wishes, costs) == pytest.approx(least, rel=1e-9)


def test_a_budget_of_patterns_keeps_its_limits() -> None:
    draw = random.Random(7)
    for _ in range(100):
        m = draw.choice([2, 4, 8])
        rows = [draw.choice([1, 2, 9, 64]) for _ in range(draw.randint(1, 6))]
        most = tuple(r * draw.randint(1, m) for r in rows)
        whole = Budget(tuple(m * r for r in rows), (1,) * len(rows), 1.0, 0, most=most)
        total = draw.randint(sum(rows), sum(most))
        whole = replace(whole, total=total, density=total / whole.full)
        budget = PatternBudget.of_every(m, whole)
        assert budget.most == most and budget.blocks.limits == tuple(
            n // r for n, r in zip(most, rows, strict=True)
        )
        kept = budget.round([draw.uniform(1 / m, 1) for _ in rows])
        assert sum(kept) <= total
        left = total - sum(kept)
        each = list(zip(kept, rows, most, strict=True))
        assert all(n % r == 0 and r <= n <= limit for n, r, limit in each)
        assert all(n == limit or r > left for n, r, limit in each)


@pytest.mark.parametrize("unit", ["flops", "params", "channels"])
def test_channels_within_limits_against_trying_all(unit: Unit) -> None:
    """The cost is quadratic. Hardly ever do other counts come 2 % closer to the total."""
    draw, apart = random.Random(8), []
    for _ in range(60):
        sizes = tuple(draw.randint(4, 9) for _ in range(3))
        pairs = [pair for pair in ((0, 1), (1, 2), (0, 0)) if draw.random() < 0.8]
        products = tuple((i, j, draw.choice([1, 9, 18])) for i, j in pairs)
        costs = tuple(draw.randint(1, 40) for _ in sizes)
        most = tuple(draw.randint((n + 1) // 2, n) for n in sizes)
        dense = Budget(sizes, costs, 1.0, 0, products, draw.randint(0, 50), True, most)
        budget = dense.at(draw.uniform(0.6, 0.95) * dense.cost(most) / dense.full, unit)
        wishes = [draw.uniform(0.1, 1) for _ in sizes]
        counts, legal = budget.round(wishes), within(budget, most)
        assert tuple(counts) in legal
        left = budget.total - budget.cost(counts)
        each = zip(counts, most, budget.prices(counts, more=1), strict=True)
        assert all(n == limit or price > left for n, limit, price in each)
        apart.append(1 - budget.cost(counts) / max(map(budget.cost, legal)))
        assert all(1 <= e <= n for e, n in zip(budget.scaled(wishes), most, strict=True))
    assert sum(each > 0.02 for each in apart) <= 6
