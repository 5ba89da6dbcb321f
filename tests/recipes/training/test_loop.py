"""The training loop: learning rates, length, choice of an epoch, and points that are used."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import recorded_steps, small
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.papers.registry import execute, train_recipe
from robust_plugin.recipes.training.loop import cosine, pretrained, train
from robust_plugin.recipes.training.run import Run


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_rate_falls_by_a_cosine_from_lr_to_above_zero(tmp_path: Path, optimizer: str) -> None:
    run = Run(tmp_path, small("hydra"))
    stage = StageConfig(epochs=4, lr=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    with recorded_steps() as seen:
        train(run, "pretrain", run.fresh_model(), stage)
    rates = [rate for step in seen for rate in step]
    assert len(rates) == 4 * 3  # 48 points in batches of 16
    assert rates[0] == 0.05 and rates[-1] > 0
    expected = [0.05 * math.cos(math.pi * t / 24) ** 2 for t in range(12)]  # the half-angle form
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_cosine_is_never_zero_nor_rising() -> None:
    for steps in (1, 2, 7, 1000):
        rates = [cosine(0.1, step, steps) for step in range(steps)]
        assert rates[0] == 0.1 and rates[-1] > 0
        assert rates == sorted(rates, reverse=True)


@pytest.mark.usefixtures("on_planted")
def test_all_methods_train_equally_long(tmp_path: Path) -> None:
    steps = {}
    for name, recipe, more in (
        ("one-shot", "magnitude", {}),
        ("2 rounds", "magnitude", {"rounds": 2}),
        ("3 rounds", "magnitude", {"rounds": 3}),
        ("gradual magnitude", "magnitude", {"schedule": "geometric"}),
        ("hydra", "hydra", {}),
        ("harp", "harp", {}),
        ("gradual", "gradual", {}),
    ):
        config = small(recipe, **more)
        with recorded_steps() as seen:
            train_recipe(recipe, Run(tmp_path / name, config))
        steps[name] = len(seen)
    assert set(steps.values()) == {(3 + 2 + 4) * 3}, steps


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("decay", [False, True])
def test_scores_and_rates_decay_only_when_asked(tmp_path: Path, decay: bool) -> None:
    seen: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([g["weight_decay"] for g in optimizer.param_groups])
    )
    try:
        config = small("harp", prune={"epochs": 1, "weight_decay": 0.01, "decay_scores": decay})
        train_recipe("harp", Run(tmp_path, config))
    finally:
        handle.remove()
    prune = [groups for groups in seen if len(groups) == 2]  # scores with rates, norms
    assert len(prune) == 3
    assert {tuple(groups) for groups in prune} == {(0.01 if decay else 0.0, 0.01)}


@pytest.mark.usefixtures("on_planted")
def test_a_loss_that_is_not_finite_names_the_stage_and_its_rate(tmp_path: Path) -> None:
    objective = {"name": "benign"}
    config = small("magnitude", objective=objective, pretrain={"epochs": 3, "lr": 1e20})
    with pytest.raises(ValueError, match=r"the loss of pretrain is (nan|inf) at epoch .*1e\+20"):
        train_recipe("magnitude", Run(tmp_path, config))


class Untouchable(Dataset[Any]):
    """Test points that raise an error when they are used before ``opened`` is set."""

    opened = False

    def __init__(self, points: Dataset[Any]) -> None:
        self.points = points

    def __len__(self) -> int:
        if not self.opened:
            raise AssertionError("the test points were counted")
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if not self.opened:
            raise AssertionError("a test point was looked at")
        return self.points[index]


@pytest.mark.parametrize("recipe", ["magnitude", "hydra", "harp", "gradual"])
def test_training_never_looks_at_the_test_points(
    recipe: str,
    tmp_path: Path,
    on_planted: Callable[[Data], None],
    planted: Callable[..., Data],
) -> None:
    data = planted()
    guard = Untouchable(data.test)
    on_planted(replace(data, test=guard))
    train_recipe(recipe, Run(tmp_path, small(recipe)))
    with pytest.raises(AssertionError, match="the test points were counted"):
        execute(recipe, small(recipe), tmp_path)  # shows that the guard works
    guard.opened = True
    assert execute(recipe, small(recipe), tmp_path).n == 40


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_validation_points_choose_the_epoch(
    select: str,
    tmp_path: Path,
    on_planted: Callable[[Data], None],
    planted: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The validation labels are wrong. The more is learned, the lower is the validation accuracy,
    # while the accuracy on training and test points rises.
    on_planted(planted(shift=1))
    after: list[dict[str, Tensor]] = []
    save = Run.save_epoch

    def remembered(run: Run, name: str, **states: Any) -> None:
        after.append({k: t.clone() for k, t in states["model"].state_dict().items()})
        save(run, name, **states)

    monkeypatch.setattr(Run, "save_epoch", remembered)
    run = Run(tmp_path, small("magnitude"))
    stage = StageConfig(epochs=6, lr=0.05, select=select)  # type: ignore[arg-type]
    model = train(run, "pretrain", run.fresh_model(), stage)
    robust = [json.loads(line)["robust"] for line in (tmp_path / "log.jsonl").open()]
    best = max(range(6), key=lambda epoch: (robust[epoch], epoch))
    assert best < 5 and robust[best] > robust[5]  # else both choices would be equal
    chosen = after[best if select == "best" else 5]
    assert all(torch.equal(chosen[k], t) for k, t in model.state_dict().items())
    assert any(not torch.equal(after[best][k], after[5][k]) for k in chosen)


@pytest.mark.usefixtures("on_planted")
def test_the_seed_decides_everything_and_the_global_generator_nothing(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(int.from_bytes(folder.encode()[:4], "big"))
        model = pretrained(Run(tmp_path / folder, small("hydra", seed=seed)))
        return {k: t.clone() for k, t in model.state_dict().items()}

    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.usefixtures("on_planted")
def test_a_given_checkpoint_takes_the_place_of_pretraining(tmp_path: Path) -> None:
    dense = pretrained(Run(tmp_path / "dense", small("hydra")))
    run = Run(
        tmp_path / "run",
        replace(small("hydra"), checkpoint=tmp_path / "dense" / "pretrain.best.safetensors"),
    )
    loaded = pretrained(run)
    assert not (tmp_path / "run" / "pretrain.safetensors").exists()
    state = loaded.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in dense.state_dict().items())
