"""HARP as in its paper: learned rates meet the budget by training, not by a cut at the end."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_recipes import SIZES, UNIFORM, kept, settings
from torch import nn
from torch.nn import functional as F

from robust_plugin import HarpPruner, ThreatModel, evaluate, pgd
from robust_plugin.budget.density_logits import rate_logits
from robust_plugin.masks.select import kept_count
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.models.registry import build_model
from robust_plugin.recipes.papers import harp as harp_module
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.training.run import Run


@pytest.mark.parametrize("m", [4, 8])
def test_harp_by_pattern(m: int, trained: Callable[..., tuple[nn.Module, Path]]) -> None:
    model, _ = trained("harp", pattern=f"n:{m}", density=0.5)
    covered = total = 0
    for name, size in SIZES.items():
        weight = model.state_dict()[name]
        if weight.shape[1] % m == 0:  # not the three input channels
            counts = (weight.movedim(1, -1).reshape(-1, m) != 0).sum(1)
            assert counts.eq(counts[0]).all() and counts[0] > 0
            covered += int(weight.count_nonzero())
            total += size
    assert 0.4 * total < covered <= 0.5 * total


@pytest.mark.parametrize("control", ["held", "hinge"])
def test_harp_meets_its_budget_by_its_own_training(
    control: str,
    trained: Callable[..., tuple[nn.Module, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruners = []
    attach = harp_module.HarpPruner

    def remembered(*args: Any, **kwargs: Any) -> HarpPruner:
        pruners.append(attach(*args, **kwargs))
        return pruners[-1]

    monkeypatch.setattr(harp_module, "HarpPruner", remembered)
    # The rates start at 10 %. A lower target makes them move.
    _, folder = trained(
        "harp", control=control, density=0.05, prune={"epochs": 20, "lr": 0.5, "select": "last"}
    )
    lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
    on_the_way = [line["density"] for line in lines if line["stage"] == "prune"]
    final = {line["density"] for line in lines if line["stage"] == "finetune"}
    target = sum(kept_count(n, 0.05) for n in SIZES.values()) / sum(SIZES.values())
    assert final == {target}
    assert on_the_way[0] > 1.2 * target  # starts above the target
    # The last prune epoch is within 1 % of the target, plus one weight per layer by rounding up.
    total = sum(SIZES.values())
    assert abs(on_the_way[-1] - target) * total <= 0.01 * target * total + 3, on_the_way
    assert pruners[0].phase == "finalized"


def test_harp_moves_weights_between_layers_by_its_gradients(tmp_path: Path) -> None:
    found = {}
    for learn in ("both", "rates"):
        run = Run(tmp_path / learn, settings("harp", learn=learn))
        found[learn] = kept(train_recipe("harp", run))
    assert all(each != UNIFORM for each in found.values())
    assert found["both"] != found["rates"]


def test_scores_alone_are_hydra(tmp_path: Path) -> None:
    scores = Run(tmp_path / "harp", settings("harp", learn="scores", rates="erk"))
    by_hydra = Run(tmp_path / "hydra", settings("hydra", rates="erk"))
    one, two = train_recipe("harp", scores), train_recipe("hydra", by_hydra)
    assert kept(one) == kept(two) != UNIFORM
    states = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


# --- on real data

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
    # The sum is held at the whole number K, which is up to one weight per layer above k n.
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
    # The rates were learned, not only lowered: the layers have different shares.
    shares = list(pruner.densities.values())
    assert max(shares) > 3 * min(shares)
