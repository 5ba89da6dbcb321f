"""The length of a stage in epochs and steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipe import recorded_steps, small

from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.training.length import length_of
from robust_plugin.recipes.training.loop import train
from robust_plugin.recipes.training.run import Run


@pytest.mark.usefixtures("on_planted")
def test_free_training_shows_a_batch_several_times_in_fewer_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path, small("hydra", objective={"name": "free", "replays": 2}))
    with recorded_steps() as seen:
        train(run, "pretrain", run.fresh_model(), StageConfig(epochs=4, lr=0.05))
    assert len(seen) == 4 * 3
    assert len(json.loads(json.dumps((tmp_path / "log.jsonl").read_text().splitlines()))) == 2


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize(
    ("objective", "epochs", "steps_per_epoch"),
    [
        ({"name": "adversarial"}, 7, 4),
        ({"name": "adversarial", "replays": 3}, 7, 4),  # only free training replays
        ({"name": "free", "replays": 3}, 2, 12),
        ({"name": "free", "replays": 20}, 1, 80),
    ],
)
def test_steps_are_counted_on_paper(
    objective: dict[str, Any], epochs: int, steps_per_epoch: int, tmp_path: Path
) -> None:
    run = Run(tmp_path, small("hydra", objective=objective, data={"batch_size": 13}))
    length = length_of(run, StageConfig(epochs=7))  # 48 points in batches of 13
    assert (length.epochs, length.steps_per_epoch) == (epochs, steps_per_epoch)
    assert length.steps == epochs * steps_per_epoch
