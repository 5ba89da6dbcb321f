"""What a dry run measures: real steps of each stage, and no test point."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.dry.measure import Stopwatch
from robust_plugin.recipes.training import run as run_module

Words = Callable[..., list[str]]


@pytest.mark.usefixtures("at_workplace")
def test_the_test_points_are_not_looked_at_and_the_run_goes_on_as_ever(
    tmp_path: Path, words: Words, run_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_tiny("hydra", tmp_path / "a")
    data_of = run_module.data_of
    looked: list[int] = []

    class Watched(Dataset[Any]):
        def __init__(self, points: Any) -> None:
            self.points = points

        def __len__(self) -> int:
            return len(self.points)

        def __getitem__(self, index: int) -> Any:
            looked.append(index)
            return self.points[index]

    def watched(config: DataConfig) -> Any:
        data = data_of(config)
        return replace(data, test=Watched(data.test))

    monkeypatch.setattr(run_module, "data_of", watched)
    assert main([*words("hydra", tmp_path / "b"), "--dry-run"]) == 0
    assert not looked
    assert run_tiny("hydra", tmp_path / "b") == whole
    assert looked  # shows that the test would notice it


def test_a_dry_run_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["hydra", "--dry-run"]) == 2
    assert "leave torchrun out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("moments", "seconds"),
    [((5.0, 9.0), 4.0), ((5.0, 9.0, 10.0), 1.0), ((0.0, 9.0, 10.0, 12.0), 1.5)],
)
def test_the_first_step_counts_only_where_it_is_alone(
    moments: tuple[float, ...],
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(moments)
    monkeypatch.setattr("robust_plugin.recipes.dry.measure.time.perf_counter", lambda: next(now))
    watch = Stopwatch({"prune": 9}, torch.device("cpu"))
    with watch.stage("prune", epochs=1, steps=9, done=0):
        for _ in moments[1:]:
            watch.update()
    assert watch.seconds("prune") == seconds and watch.peaks["prune"] > 2**20
