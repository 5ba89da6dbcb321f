"""Initial scores by name: SNIP computed by hand, and a finished run that is started again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from robust_plugin import HydraPruner, pgd
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.papers.registry import RECIPES, train_recipe
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import initial_scores_of
from robust_plugin.runtime.random import seed_of

SETTINGS: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "8/255"},
    "objective": {"steps": 3},
    "pretrain": {"epochs": 1, "lr": 0.1},
    "prune": {"epochs": 1, "lr": 0.2},
    "finetune": {"epochs": 1, "lr": 0.05},
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture
def run(
    tmp_path: Path,
    at_workplace: Path,
    planted: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.setattr(run_module, "data_of", lambda config: planted())
    kind = RECIPES["hydra"].config
    return Run(tmp_path / "run", build(kind, {**SETTINGS, "scores": "snip"}, where="test"))


def test_snip_is_weight_times_gradient_on_attacked_points_scaled_by_layer(run: Run) -> None:
    model = run.fresh_model()
    torch.manual_seed(7)
    scores = initial_scores_of(run, model, "snip")
    assert isinstance(scores, dict)

    seed = seed_of(0, "scores")
    x, y = next(iter(loader(run.data.train, batch_size=16, seed=seed, epoch=0, shuffle=True)))
    torch.manual_seed(7)
    x_adv = pgd(run.threat, steps=3)(model.eval(), x, y)
    assert not torch.equal(x_adv, x)
    F.cross_entropy(model(x_adv), y).backward()
    weights = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    assert set(scores) == set(weights)
    for name, weight in weights.items():
        assert weight.grad is not None
        sensitivity = (weight * weight.grad).abs()
        largest = math.sqrt(6 / weight[0].numel())
        expected = largest * sensitivity / sensitivity.max()
        torch.testing.assert_close(scores[name], expected.detach(), rtol=1e-4, atol=1e-6)
    HydraPruner(model, 0.3, scores=scores)


def test_other_names_are_the_pruners_own(run: Run) -> None:
    assert initial_scores_of(run, run.fresh_model(), "xavier_normal") == "xavier_normal"


@pytest.mark.parametrize("recipe", ["hydra", "harp"])
def test_recipes_take_snip_and_a_finished_run_gives_the_same_network_again(
    run: Run, tmp_path: Path, recipe: str
) -> None:
    kind = RECIPES[recipe].config
    config = build(kind, {**SETTINGS, "scores": "snip"}, where="test")
    first = train_recipe(recipe, Run(tmp_path / "again", config)).state_dict()
    second = train_recipe(recipe, Run(tmp_path / "again", config)).state_dict()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
