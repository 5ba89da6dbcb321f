"""Learned rates meet the budget by their own training on real data, not by a cliff at the end."""

import copy

import pytest
import torch
from torch.nn import functional as F

from robust_plugin import HarpPruner, ThreatModel, evaluate, pgd
from robust_plugin.budget.control import rate_logits
from robust_plugin.recipes.data.datasets import load_data, loader
from robust_plugin.recipes.models.registry import build_model

THREAT = ThreatModel("Linf", eps=0.15)
EPOCHS = 5


def train(model, parameters, lr, epochs, data, pruner=None):
    attack = pgd(THREAT, steps=5)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    steps = len(loader(data.train, batch_size=64, seed=0, epoch=0, shuffle=True))
    if pruner is not None:
        pruner.follow(optimizer, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for epoch in range(epochs):
        for step, (x, y) in enumerate(
            loader(data.train, batch_size=64, seed=0, epoch=epoch, shuffle=True)
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - (epoch * steps + step) / (epochs * steps))
            loss = F.cross_entropy(model(attack(model, x, y)), y)
            if pruner is not None:
                loss = loss + pruner.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    data = load_data("digits")
    model = build_model("digits-cnn", classes=10, shape=(1, 8, 8))
    train(model, model.parameters(), 0.1, 12, data)
    return model, data


@pytest.mark.parametrize("density", [0.05, 0.01])
@pytest.mark.parametrize("control", ["held", "hinge"])
def test_rates_arrive_at_the_budget_by_training(dense, control, density):
    model, data = copy.deepcopy(dense[0]), dense[1]
    pruner = HarpPruner(model, density, control=control)
    assert pruner.kept == pytest.approx(0.1 * pruner.budget.full, rel=0.01)
    train(model, pruner.set_phase("prune"), 1.0, EPOCHS, data, pruner)

    share = pruner.budget.share(rate_logits(pruner.masks), pruner.masks[0].k_min)
    # The held sum is the whole number K, which lies up to one weight a layer above k n.
    assert share == pytest.approx(pruner.budget.total / pruner.budget.full, rel=0.01)
    assert pruner.kept == pytest.approx(pruner.budget.total, rel=0.01)

    points = list(loader(data.test, batch_size=400, seed=0, epoch=0, shuffle=False))
    attack = pgd(THREAT, steps=10, start="gaussian")
    before = evaluate(model, points, attacks=[attack])
    pruner.set_phase("finetune")
    after = evaluate(model, points, attacks=[attack])
    assert pruner.kept == pruner.budget.total
    for row in before.rows:
        assert after.accuracy(row) > before.accuracy(row) - 0.01
    # Learned, not merely cut: the layers' shares have parted.
    shares = list(pruner.densities.values())
    assert max(shares) > 3 * min(shares)
