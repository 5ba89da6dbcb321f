"""BatchNorm statistics in a run: of the present masks, of what training sees, and resumable."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import interrupt_after, small
from torch import nn

from robust_plugin import MagnitudePruner, recompute_statistics
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.papers.registry import execute
from robust_plugin.recipes.training import loop
from robust_plugin.recipes.training.loop import train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.statistics import measured_anew
from robust_plugin.runtime.random import seed_of

pytestmark = pytest.mark.usefixtures("on_planted")
STAGE = StageConfig(epochs=1, lr=0.05)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.named_buffers() if "running" in n}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_they_are_those_of_the_next_epochs_points(tmp_path: Path) -> None:
    run = Run(tmp_path, small("hydra", objective={"name": "benign"}))
    model = run.fresh_model()
    measured_anew(run, "finetune", model, STAGE, epoch=3, epochs=4)
    found = statistics(model)
    points = run.data.train
    seed = seed_of(run.config.seed, "finetune")
    batches = list(loader(points, batch_size=16, seed=seed, epoch=3, shuffle=True))
    assert sum(len(x) for x, _ in batches) < 1000  # so all of them are used
    recompute_statistics(model, batches)
    assert equal(found, statistics(model)) and len(found) == 2


@pytest.mark.parametrize("objective", ["adversarial", "trades", "gaussian"])
def test_they_are_those_of_what_the_objective_passes_and_repeat_to_the_bit(
    tmp_path: Path, objective: str
) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for name in ("benign", objective, objective):
        run = Run(tmp_path, small("hydra", objective={"name": name}, threat={"eps": "32/255"}))
        model = run.fresh_model()
        torch.rand(len(found))  # the state of the global generator has no influence
        measured_anew(run, "prune", model, STAGE, epoch=0, epochs=1)
        found.append(statistics(model))
    assert equal(found[1], found[2]) and not equal(found[0], found[1])


def test_they_are_measured_before_each_validation_and_when_a_stage_has_new_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    validated = loop.validated
    monkeypatch.setattr(
        loop,
        "measured_anew",
        lambda run, name, model, stage, *, epoch, epochs: events.append((name, epoch)),
    )
    monkeypatch.setattr(
        loop,
        "validated",
        lambda run, model: (events.append("validation"), validated(run, model))[1],
    )
    run = Run(tmp_path, small("magnitude"))
    model = train(run, "pretrain", run.fresh_model(), StageConfig(epochs=2, lr=0.05))
    train(run, "finetune", model, STAGE, pruner=MagnitudePruner(model, 0.3))
    assert events == [
        *[("pretrain", 1), "validation", ("pretrain", 2), "validation"],
        *[("finetune", 0), ("finetune", 1), "validation"],
    ]


@pytest.mark.parametrize("recipe", ["hydra", "harp"])
@pytest.mark.parametrize("finetune", [0, 2])
def test_the_finished_network_has_the_statistics_of_its_own_masks(
    tmp_path: Path, recipe: str, finetune: int
) -> None:
    """One step of the objective in training mode sees what evaluation mode computes."""
    config = small(
        recipe,
        density=0.2,
        objective={"name": "benign"},
        finetune={"epochs": finetune, "lr": 0.05, "select": "last"},
    )
    execute(recipe, config, tmp_path)
    run = Run(tmp_path, config)
    model = run.fresh_model()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    stored = statistics(model)
    x = torch.stack([x for x, _ in run.data.train])
    recompute_statistics(model, [x])
    for name, tensor in statistics(model).items():
        assert torch.allclose(stored[name], tensor, rtol=0.05, atol=0.01), name


def test_an_interrupted_run_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("hydra", density=0.3)
    execute("hydra", config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 17)
        with pytest.raises(KeyboardInterrupt):
            execute("hydra", config, tmp_path / "parts")
    execute("hydra", config, tmp_path / "parts")
    whole, parts = ((tmp_path / each / "log.jsonl").read_text() for each in ("whole", "parts"))
    assert whole == parts and len(whole.splitlines()) == 9
    first, second = (
        json.loads((tmp_path / each / "report.json").read_text())["report"]
        for each in ("whole", "parts")
    )
    assert first == second
