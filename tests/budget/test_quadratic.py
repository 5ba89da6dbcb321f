"""Budgets with a quadratic cost, against differences, gradients and the best whole counts."""

import random

import pytest
import torch

from robust_plugin import Budget
from robust_plugin.budget.quadratic import Terms, _moves, spend


def random_budget(generator, groups=4):
    sizes = tuple(generator.randint(4, 24) for _ in range(groups))
    pairs = [(i, j) for i in range(groups) for j in range(i, groups)]
    return Budget(
        sizes,
        tuple(generator.randint(0, 30) for _ in range(groups)),
        1.0,
        0,
        tuple((i, j, generator.randint(1, 9)) for i, j in generator.sample(pairs, 5)),
        generator.randint(0, 500),
    )


def test_prices_are_the_cost_of_one_more():
    generator = random.Random(0)
    for _ in range(20):
        budget = random_budget(generator)
        counts = [generator.randint(1, n) for n in budget.sizes]
        for i, (more, less) in enumerate(
            zip(budget.prices(counts, more=1), budget.prices(counts, more=-1), strict=True)
        ):
            up, down = ([n + s * (i == j) for j, n in enumerate(counts)] for s in (1, -1))
            assert more == budget.cost(up) - budget.cost(counts)
            assert less == budget.cost(counts) - budget.cost(down)
        exact = torch.tensor([float(n) for n in counts], dtype=torch.float64, requires_grad=True)
        budget.cost(list(exact)).backward()
        assert exact.grad.tolist() == budget.prices(counts)


def test_the_price_of_a_move_is_the_difference_of_two_costs():
    generator, tried = random.Random(4), 0
    for _ in range(5):
        budget = random_budget(generator, groups=3)
        counts = [generator.randint(1, n) for n in budget.sizes]
        for price, give, i, take, j in _moves(budget.terms, budget.sizes, counts):
            moved = list(counts)
            moved[i] -= give
            moved[j] += take
            assert i != j and moved[i] >= 1 and moved[j] <= budget.sizes[j]
            assert price == budget.cost(moved) - budget.cost(counts)
            tried += 1
    assert tried > 100


def test_a_linear_cost_is_spent_to_the_last_entry_that_fits():
    terms = Terms((3, 5))
    assert terms.cost([2, 4]) == 26 and terms.prices([2, 4]) == [3, 5]
    assert spend(terms, (10, 10), 40, [4, 4], [0, 1]) == [5, 5]
    assert spend(terms, (10, 10), 43, [4, 4], [0, 1]) == [6, 5]
    # The first group is full: four of its entries move and pay for three of the second.
    assert spend(terms, (5, 10), 43, [4, 4], [0, 1]) == [1, 8] and terms.cost([1, 8]) == 43


@pytest.mark.parametrize("unit", ["flops", "params", "channels"])
def test_rounding_meets_the_budget_as_well_as_integers_allow(unit):
    generator = random.Random(1)
    near = 0
    for _ in range(30):
        dense = random_budget(generator)
        density = generator.uniform(0.35, 0.9)
        budget = dense.at(density, unit)
        wishes = [generator.uniform(0.1, 1) for _ in budget.sizes]
        counts = budget.round(wishes)
        assert all(1 <= n <= size for n, size in zip(counts, budget.sizes, strict=True))
        left = budget.total - budget.cost(counts)
        assert left >= 0
        for price, n, size in zip(budget.prices(counts, more=1), counts, budget.sizes, strict=True):
            assert n == size or price > left
        near += left <= 0.01 * budget.total
        exact = budget.scaled(wishes)
        assert budget.cost(exact) == pytest.approx(budget.total, rel=1e-9) or exact == [
            float(n) for n in budget.sizes
        ]
    assert near >= 27


def test_a_held_budget_of_channels_is_met_and_falls_along_its_gradient():
    generator = random.Random(2)
    for _ in range(10):
        budget = random_budget(generator).at(0.5, "flops")
        logits = torch.randn(4, dtype=torch.float64)
        held = budget.hold(logits, 0.05)
        assert budget.share(held, 0.05) == pytest.approx(budget.total / budget.full, rel=1e-9)
        shares = [0.05 + 0.95 * k for k in logits.sigmoid().tolist()]
        kept = torch.tensor(
            [k * n for k, n in zip(shares, budget.sizes, strict=True)], requires_grad=True
        )
        budget.cost(list(kept)).backward()
        slope = kept.grad * torch.tensor(budget.sizes) * logits.sigmoid() * (1 - logits.sigmoid())
        moved = held - logits
        assert torch.nn.functional.cosine_similarity(moved.abs(), slope.double(), 0) > 1 - 1e-9
        assert bool((moved.sign() == moved.sign()[0]).all())


def test_the_hinge_is_zero_at_the_budget_and_grows_with_the_cost():
    budget = random_budget(random.Random(3)).at(0.5, "channels")
    at = [n / size for n, size in zip(budget.scaled([0.5] * 4), budget.sizes, strict=True)]
    assert float(budget.hinge([torch.tensor(k) for k in at])) == pytest.approx(0, abs=1e-5)
    rates = [torch.tensor(0.9, requires_grad=True) for _ in at]
    loss = budget.hinge(rates)
    wanted = budget.cost([0.9 * n for n in budget.sizes]) / budget.total - 1
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    prices = budget.prices([0.9 * n for n in budget.sizes])
    slopes = [p * n / budget.total for p, n in zip(prices, budget.sizes, strict=True)]
    assert [r.grad.item() for r in rates] == pytest.approx(slopes, rel=1e-4)
