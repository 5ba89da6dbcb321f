"""How learned rates meet the budget: held by projection, or by the paper's hinge."""

import json
import math

import pytest
import torch

from robust_plugin import Budget, HarpPruner
from robust_plugin.budget.control import (
    _TRAVEL,
    FixedRates,
    HeldRates,
    HingeRates,
    PhaseSteps,
)
from robust_plugin.budget.density_logits import densities
from robust_plugin.masks.group_mask import GroupMask

SIZES = (200, 3000, 40)


def rated(rates, k_min):
    masks = []
    for n, r in zip(SIZES, rates, strict=True):
        masks.append(GroupMask(torch.randn(n), 1, k_min=k_min, rate=r))
    return masks


def test_schedule():
    assert PhaseSteps().progress == 0.0
    assert PhaseSteps(step=5, epochs=4, steps_per_epoch=5).progress == 0.25
    assert PhaseSteps(step=50, epochs=4, steps_per_epoch=5).progress == 1.0


def logits_of(masks):
    return torch.tensor([float(mask.rate.detach()) for mask in masks], dtype=torch.float64)


def kept_by(masks):
    return sum(k * n for k, n in zip(densities(masks), SIZES, strict=True))


def descend(masks, changes):
    """What an optimizer does."""
    with torch.no_grad():
        for mask, change in zip(masks, changes, strict=True):
            mask.rate += change


@pytest.mark.parametrize("density", [0.05, 0.01, 0.3])
def test_held_budget_falls_geometrically_over_six_tenths(density):
    budget, k_min = Budget.of(SIZES, [1, 1, 1], density), 0.1 * density
    given = torch.tensor([-2.0, -2.1, 0.4], dtype=torch.float64)
    control = HeldRates(budget, given, k_min)
    shares = [k_min + (1 - k_min) / (1 + math.exp(-r)) for r in given.tolist()]
    start = max(density, sum(n * k for n, k in zip(SIZES, shares, strict=True)) / 3240)
    for step in range(0, 101):
        share = start * (density / start) ** min(1.0, step / 60)
        wanted = max(budget.total, math.floor(share * 3240))
        total = control.total(PhaseSteps(step, 10, 10)).total
        assert abs(total - wanted) <= 1  # a float's width at whole numbers
        if step >= 60:
            assert total == budget.total


def test_held_step_limits_the_change_and_restores_the_sum():
    density, k_min = 0.1, 0.01
    budget = Budget.of(SIZES, [1, 1, 1], density)
    masks, done = rated([-2.3, -2.3, -2.3], k_min), PhaseSteps(60, 10, 10)
    control = HeldRates(budget, logits_of(masks), k_min)
    control.after_step(masks, done)
    before = logits_of(masks)
    assert kept_by(masks) == pytest.approx(budget.total, rel=1e-6)
    descend(masks, [5.0, -0.02, -3.0])  # far more than a step may
    control.after_step(masks, done)
    # All changes are scaled so that the largest is what a hundredth of the phase may move, then
    # the sum is restored.
    moved = before + torch.tensor([5.0, -0.02, -3.0]) / 5.0 * _TRAVEL / 100
    wanted = budget.hold(moved.double(), k_min)
    assert logits_of(masks).tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert kept_by(masks) == pytest.approx(budget.total, rel=1e-6)
    counts = control.counts(masks, done)
    assert sum(counts) == budget.total
    for count, n, k in zip(counts, SIZES, densities(masks), strict=True):
        assert abs(count - k * n) < 1.01
    assert float(control.penalty(masks, done)) == 0


def test_small_steps_are_not_scaled():
    budget = Budget.of(SIZES, [1, 1, 1], 0.1)
    masks, done = rated([-2.3, -2.3, -2.3], 0.01), PhaseSteps(60, 10, 10)
    control = HeldRates(budget, logits_of(masks), 0.01)
    control.after_step(masks, done)
    wanted = budget.hold(logits_of(masks) + torch.tensor([0.005, -0.0025, 0.009]), 0.01)
    descend(masks, [0.005, -0.0025, 0.009])
    control.after_step(masks, done)
    assert logits_of(masks).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_held_counts_follow_the_budget_at_every_step():
    budget = Budget.of(SIZES, [1, 1, 1], 0.02)
    masks = rated([-2.2, -2.2, -2.2], 0.002)
    control = HeldRates(budget, logits_of(masks), 0.002)
    for step in range(1, 101):
        descend(masks, torch.randn(3).tolist())
        control.after_step(masks, PhaseSteps(step, 10, 10))
        total = control.total(PhaseSteps(step, 10, 10)).total
        assert sum(control.counts(masks, PhaseSteps(step, 10, 10))) == total
        assert kept_by(masks) == pytest.approx(total, rel=1e-5)
    assert total == budget.total


@pytest.mark.parametrize("kind", [HeldRates, HingeRates])
def test_state_continues(kind):
    budget, steps = Budget.of(SIZES, [1, 1, 1], 0.1), PhaseSteps(3, 10, 3)
    masks = rated([-2.0, -2.5, 0.5], 0.01)
    first, second = (kind(budget, logits_of(masks), 0.01) for _ in range(2))
    first.after_step(masks, steps)
    second.load(json.loads(json.dumps(first.state())))
    twins = rated(logits_of(masks).tolist(), 0.01)
    descend(masks, [0.0, 4.0, 1.0]), descend(twins, [0.0, 4.0, 1.0])
    first.after_step(masks, steps), second.after_step(twins, steps)
    assert torch.equal(logits_of(masks), logits_of(twins))
    assert first.state() == second.state()


def hinge(budget, masks, **options):
    return HingeRates(budget, logits_of(masks), 0.01, **options)


def test_hinge_penalty_is_gamma_times_the_hinge():
    budget = Budget.of(SIZES, [1, 1, 1], 0.1)
    rates, k_min = [-1.0, -2.0, 0.0], 0.01
    masks, steps = rated(rates, k_min), PhaseSteps(0, 2, 10)
    control = hinge(budget, masks)
    for mask in masks:
        mask.rate.requires_grad_(True)
    sigmoid = [1 / (1 + math.exp(-r)) for r in rates]
    share = sum(n * (k_min + 0.99 * s) for n, s in zip(SIZES, sigmoid, strict=True)) / 3240
    gamma = 0.01 * 391 / 10  # 10 steps an epoch instead of the paper's 391
    loss = control.penalty(masks, steps)
    assert loss.item() == pytest.approx(gamma * max(share / 0.1 - 1, 0), rel=1e-5)
    loss.backward()
    for mask, n, s in zip(masks, SIZES, sigmoid, strict=True):
        wanted = gamma * n * 0.99 * s * (1 - s) / 3240 / 0.1
        assert float(mask.rate.grad) == pytest.approx(wanted, rel=1e-4)
    assert control.gamma(PhaseSteps(0, 20, 391)) == 0.01
    assert control.gamma(PhaseSteps(0, 20, 800)) == 0.01  # never slower
    assert hinge(budget, masks, gamma_step=0.1).gamma(PhaseSteps(0, 20, 391)) == 0.1


def test_gamma_grows_at_the_end_of_epochs_above_the_target_only():
    budget = Budget.of(SIZES, [1, 1, 1], 0.1)
    masks, grown = rated([0.0, 0.0, 0.0], 0.01), []
    control = hinge(budget, masks)
    for step in range(1, 8):
        control.after_step(masks, PhaseSteps(step, 4, 3))
        grown.append(control.growths)
    assert grown == [1, 1, 2, 2, 2, 3, 3]
    assert control.gamma(PhaseSteps(0, 4, 3)) == pytest.approx(3 * 0.01 * 391 / 3)
    masks = rated([-5.0, -5.0, -5.0], 0.01)
    below = hinge(budget, masks)
    below.load({"growths": 7, "travel": 2.0, "previous": [-5.0] * 3})
    for step in range(8, 13):
        below.after_step(masks, PhaseSteps(step, 4, 3))
    assert below.state() == {"growths": 7, "travel": 2.0, "previous": [-5.0] * 3}


def test_hinge_stops_at_the_target_on_its_way_down():
    budget = Budget.of(SIZES, [1, 1, 1], 0.1)
    on_target = budget.hold(torch.full((3,), -2.0, dtype=torch.float64), 0.01)
    masks, kept = rated((on_target + 0.05).tolist(), 0.01), []
    control = hinge(budget, masks)
    for change in (-0.09, -0.09, 0.02):
        descend(masks, [change] * 3)
        control.after_step(masks, PhaseSteps(1, 4, 3))
        kept.append(kept_by(masks))
    assert kept[:2] == pytest.approx([budget.total] * 2, rel=1e-6)  # not below
    assert kept[2] > budget.total + 1


def test_hinge_counts_are_what_the_rates_ask_for():
    budget = Budget.of(SIZES, [1, 1, 1], 0.1)
    masks = rated([0.0, 0.0, -30.0], 0.01)
    counts = hinge(budget, masks).counts(masks, PhaseSteps())
    k = 0.01 + 0.99 * 0.5
    assert counts == [200 - int((1 - k) * 200), 3000 - int((1 - k) * 3000), 1]


def test_fixed_rates_change_nothing():
    masks = rated([0.0, 0.0, 0.0], 0.0)
    control = FixedRates()
    control.after_step(masks, PhaseSteps())
    assert control.counts(masks, PhaseSteps()) == [1, 1, 1]
    assert float(control.penalty(masks, PhaseSteps())) == 0 and control.state() == {}


def test_rates_learn_by_the_straight_through_sum_and_the_hinge(cnn, batch):
    """dL/dr = ([sum w g] + gamma dL_hw/dk) sigmoid'(r) (1 - k_min) in a whole network."""
    x, y = batch
    model = cnn().eval()
    weights = [model[i].weight.detach().clone() for i in (0, 3, 6)]
    pruner = HarpPruner(model, 0.05, control="hinge")
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=5)
    task = torch.nn.functional.cross_entropy(model(x), y)
    (task + pruner.budget_penalty()).backward()
    # g = dL/dw_eff, from a plain copy that holds the effective weights.
    plain = cnn().eval()
    for i, weight, mask in zip((0, 3, 6), weights, pruner.masks, strict=True):
        plain[i].weight.data = weight * mask.mask
    torch.nn.functional.cross_entropy(plain(x), y).backward()
    gamma = 0.01 * 391 / 5  # the phase starts at 10 %, above the target: the hinge is open
    for i, weight, mask in zip((0, 3, 6), weights, pruner.masks, strict=True):
        g, r = plain[i].weight.grad, float(mask.rate.detach())
        slope = 0.995 / (1 + math.exp(-r)) / (1 + math.exp(r))
        wanted = (float((weight * g).sum()) + gamma * weight.numel() / 1640 / 0.05) * slope
        assert float(mask.rate.grad) == pytest.approx(wanted, rel=1e-3)
        assert torch.allclose(mask.scores.grad, mask.scores.sign() * weight * g, atol=1e-6)
