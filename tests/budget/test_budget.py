"""Budgets of weights: exact totals of whole pruned networks, and rounding of random groups."""

import math
import random

import pytest
import torch

from robust_plugin import Budget, HydraPruner, MagnitudePruner, sparsity
from robust_plugin.budget.budget import check_density

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

DENSITIES = [0.5, 0.1, 0.05, 0.01, 0.001]
SIZES = (72, 288, 1280)


def uniform_count(density: float) -> int:
    return sum(max(1, n - int((1 - density) * n)) for n in SIZES)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global"])
@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_exactly_the_uniform_networks_count(cnn, attach, train, density, rates, kind):
    pruner = attach(kind, cnn(), density, rates=rates)
    if kind == "hydra":
        train(pruner, "prune")
    train(pruner, "finetune", steps=2)
    check_exact(pruner, density)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("start", ["uniform", "erk"])
@pytest.mark.parametrize("kind", ["held", "hinge", "rates"])
def test_exactly_as_many_with_learned_rates(cnn, attach, train, density, start, kind):
    pruner = attach(kind, cnn(), density, rates=start)
    train(pruner, "prune", steps=6)
    if kind != "hinge":  # the held budget is there before the rounding at the end
        assert pruner.kept == uniform_count(density)
    train(pruner, "finetune", steps=2)
    check_exact(pruner, density)


def check_exact(pruner, density):
    assert pruner.kept == pruner.budget.total == uniform_count(density)
    kept = [int(mask.mask.sum()) for mask in pruner.masks]
    assert min(kept) >= 1
    assert kept == [int(mask.kept) for mask in pruner.masks]
    assert pruner.densities == {
        name: k / n
        for name, k, n in zip(("0.weight", "3.weight", "6.weight"), kept, SIZES, strict=True)
    }
    pruner.finalize()
    nonzero = [int(pruner.model[i].weight.count_nonzero()) for i in (0, 3, 6)]
    assert nonzero == kept and sum(nonzero) == uniform_count(density)


def test_learned_rates_move_weights_between_layers(cnn, attach, train):
    pruner = attach("held", cnn(), 0.1)
    train(pruner, "prune", steps=30, lr=1.0)
    assert pruner.kept == uniform_count(0.1)
    moved = [abs(k - 0.1) for k in pruner.densities.values()]
    assert max(moved) > 0.05


@pytest.mark.parametrize("density", [0.5, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global"])
def test_flops_within_a_percent_and_never_above(cnn, batch, density, rates):
    model = cnn()
    pruner = MagnitudePruner(
        model, density, rates=rates, budget="flops", example_inputs=batch[0][:1]
    )
    # 8x8 positions of the first convolution, 4x4 of the strided second, one of the last layer.
    full = 64 * 72 + 16 * 288 + 1280
    assert pruner.budget.full == full and pruner.budget.total == math.floor(density * full)
    pruner.finalize()
    left = sum(
        positions * int(model[i].weight.count_nonzero())
        for i, positions in ((0, 64), (3, 16), (6, 1))
    )
    assert 0.99 * density * full <= left <= density * full
    counted = sparsity(model, batch[0][:1])
    assert left == sum(layer.kept * layer.multiply_adds for layer in counted.layers)


@pytest.mark.parametrize("kind", ["held", "hinge"])
def test_flops_with_learned_rates(cnn, batch, attach, train, kind):
    pruner = attach(kind, cnn(), 0.1, budget="flops", example_inputs=batch[0][:1])
    train(pruner, "prune", steps=6)
    train(pruner, "finetune", steps=1)
    assert 0.99 * 0.1 * 10496 <= pruner.kept <= 0.1 * 10496


def test_rounding_meets_the_total_on_random_groups():
    draw = random.Random(0)
    for _ in range(600):
        layers = draw.randint(1, 12)
        sizes = [draw.choice([1, 2, 9, 100, 4096, 100_000]) for _ in range(layers)]
        budget = Budget.of(sizes, [1] * layers, draw.choice([0.9, 0.5, 0.1, 0.01, 1e-4, 1.0]))
        densities = [10 ** draw.uniform(-5, 0) for _ in range(layers)]
        counts = budget.round(densities)
        assert sum(counts) == budget.total == budget.cost(counts)
        assert all(1 <= count <= n for count, n in zip(counts, sizes, strict=True))
        assert all(isinstance(count, int) for count in counts)


def test_rounding_with_costs_leaves_no_entry_that_would_fit():
    draw = random.Random(1)
    for _ in range(300):
        layers = draw.randint(1, 8)
        sizes = [draw.choice([4, 30, 500, 3000]) for _ in range(layers)]
        costs = [draw.choice([1, 7, 16, 64, 1024]) for _ in range(layers)]
        budget = Budget.of(sizes, costs, draw.choice([0.9, 0.5, 0.1, 0.02]), unit="flops")
        counts = budget.round([10 ** draw.uniform(-3, 0) for _ in range(layers)])
        left = budget.total - budget.cost(counts)
        assert left >= 0
        for count, n, cost in zip(counts, sizes, costs, strict=True):
            assert 1 <= count <= n
            assert count == n or cost > left


def test_rounding_keeps_proportions():
    budget = Budget.of([1000, 1000, 1000], [1, 1, 1], 0.1)
    assert budget.total == 300
    assert budget.round([0.03, 0.06, 0.01]) == [90, 180, 30]
    # One layer full, one at its floor of one: the others share what is left.
    assert budget.rescaled(1201).round([1.0, 0.1, 1e-9]) == [1000, 200, 1]


def test_hold_solves_the_sum_along_its_gradient():
    draw, checked = random.Random(0), 0
    for _ in range(200):
        sizes = [draw.choice([10, 500, 40_000]) for _ in range(draw.randint(1, 9))]
        costs = [draw.choice([1, 16]) for _ in sizes]
        budget = Budget.of(sizes, costs, draw.uniform(0.02, 0.95), unit="flops")
        k_min = 0.1 * budget.density
        given = [draw.uniform(-4, 4) for _ in sizes]
        held = budget.hold(torch.tensor(given, dtype=torch.float64), k_min).tolist()
        if max(map(abs, held)) >= 12:  # bounded, for float32's sake
            continue
        checked += 1
        share = sum(
            c * n * (k_min + (1 - k_min) / (1 + math.exp(-r)))
            for c, n, r in zip(costs, sizes, held, strict=True)
        )
        assert share == pytest.approx(budget.total, rel=1e-9)
        # Each logit moved by the same multiple of the sum's own gradient there.
        slopes = [
            c * n / (1 + math.exp(-r)) / (1 + math.exp(r))
            for c, n, r in zip(costs, sizes, given, strict=True)
        ]
        moves = [b - a for a, b in zip(given, held, strict=True)]
        x = moves[0] / slopes[0]
        assert moves == pytest.approx([x * slope for slope in slopes], rel=1e-6, abs=1e-12)
    assert checked > 150


def test_hinge_and_its_gradient_equal_closed_forms():
    sizes, costs, density, k_min = (72, 288, 1280), (64, 16, 1), 0.1, 0.01
    budget = Budget.of(sizes, costs, density, unit="flops")
    rates = [torch.tensor(r, dtype=torch.float64, requires_grad=True) for r in (-1.0, 0.5, 2.0)]
    loss = budget.hinge([k_min + (1 - k_min) * r.sigmoid() for r in rates])
    loss.backward()
    full = sum(c * n for c, n in zip(costs, sizes, strict=True))
    sigmoid = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2))]
    share = sum(c * n * (k_min + 0.99 * s) for c, n, s in zip(costs, sizes, sigmoid, strict=True))
    assert loss.item() == pytest.approx(share / full / density - 1, rel=1e-6)
    for r, c, n, s in zip(rates, costs, sizes, sigmoid, strict=True):
        wanted = c * n * 0.99 * s * (1 - s) / (full * density)
        assert float(r.grad) == pytest.approx(wanted, rel=1e-6)
    below = torch.tensor(0.05, requires_grad=True)
    loss = budget.hinge([below] * 3)
    loss.backward()
    assert loss.item() == 0 and float(below.grad) == 0


@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, math.inf, None, "0.1", [0.1]])
def test_bad_density(density):
    with pytest.raises(ValueError, match="legal: 0 < density <= 1") as error:
        check_density(density)
    assert repr(density) in str(error.value)


def test_units():
    with pytest.raises(ValueError, match="budget is 'macs'; legal: params, flops"):
        Budget.of([5], [1], 0.5, unit="macs")
    flops = Budget.of([10, 100], [50, 3], 0.1, unit="flops")
    assert (flops.full, flops.total) == (800, 80)
    assert Budget.of([10, 100], [50, 3], 0.01, unit="flops").total == 53  # one entry each
    assert Budget.of([10, 100], [1, 1], 0.001).total == 2
    # A group of channels costs the weights that a channel has, and K is in weights.
    assert Budget.of([10, 20], [9, 4], 0.5).total == 5 * 9 + 10 * 4


def test_hydra_keeps_the_budget_at_every_step(cnn, batch):
    pruner = HydraPruner(cnn(), 0.05)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    before = [mask.mask.clone() for mask in pruner.masks]
    for _ in range(4):
        torch.nn.functional.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
        optimizer.step()
        assert pruner.kept == uniform_count(0.05)
    assert any(not torch.equal(a, b.mask) for a, b in zip(before, pruner.masks, strict=True))
