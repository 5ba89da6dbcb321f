"""A dry run says what comes, from real steps, and writes nothing; a real one says what it left."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from robust_plugin.masks.select import kept_count
from robust_plugin.recipes.catalogue.folder import phrase
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.papers.registry import RECIPES, stages_of, train_recipe
from robust_plugin.recipes.runtime.progress import Progress, clock
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training.run import Run

Words = Callable[..., list[str]]


def rows(printed: str) -> dict[str, list[str]]:
    """The table of stages: name to its columns."""
    found = re.findall(
        r"^(\S+) +([\d,]+) +([\d,]+) +([\d.]+) +([\d.]+ GB) +\S+ +(\S+)$", printed, re.MULTILINE
    )
    return {name: list(columns) for name, *columns in found}


@pytest.mark.parametrize(
    ("command", "more", "stages"),
    [
        ("hydra", (), {"pretrain": (2, 6), "prune": (2, 6), "finetune": (2, 6)}),
        ("harp", ("--prune.epochs=5",), {"pretrain": (2, 6), "prune": (5, 15), "finetune": (2, 6)}),
        (
            "magnitude",
            ("--rounds=2",),
            {"pretrain": (2, 6), "finetune-1": (2, 6), "finetune": (2, 6)},
        ),
        (
            "hydra",
            ("--objective.name=free", "--objective.replays=2", "--pretrain.epochs=8"),
            {"pretrain": (4, 24), "prune": (1, 6), "finetune": (1, 6)},
        ),
    ],
)
def test_the_plan_has_every_stage_and_nothing_is_written(
    command: str,
    more: tuple[str, ...],
    stages: dict[str, tuple[int, int]],
    tmp_path: Path,
    at_workplace: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(at_workplace.rglob("*"))
    assert main([*words(command, tmp_path / "out", *more), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    found = {name: (int(epochs), int(steps)) for name, (epochs, steps, *_) in rows(printed).items()}
    assert found == stages
    assert not (tmp_path / "out").exists()
    after = [path for path in at_workplace.rglob("*") if "__pycache__" not in str(path)]
    assert sorted(after) == [path for path in before if "__pycache__" not in str(path)]
    sizes = (3 * 8 * 9, 16 * 8 * 9, 64 * 4)
    kept = sum(kept_count(size, 0.3) for size in sizes)
    assert f"\nkept {kept} of {sum(sizes):,} weights (30 %)\n" in printed
    for name in (
        "model.safetensors",
        "report.json",
        "log.jsonl",
        *(f"{s}.safetensors" for s in stages),
    ):
        assert f"  {name} " in printed


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

    def watched(of: DataConfig) -> Any:
        data = data_of(of)
        return replace(data, test=Watched(data.test))

    monkeypatch.setattr(run_module, "data_of", watched)
    assert main([*words("hydra", tmp_path / "b"), "--dry-run"]) == 0
    assert not looked
    assert run_tiny("hydra", tmp_path / "b") == whole
    assert looked  # the trap works


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("option", "message"), [("--density=2", "density is 2.0"), ("--model=resnet1", "'resnet1'")]
)
def test_a_dry_run_refuses_what_a_run_refuses(
    option: str, message: str, tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("hydra", tmp_path / "out", option), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["hydra", "--dry-run"]) == 2
    assert "leave torchrun out" in capsys.readouterr().err


def test_a_run_lists_all_it_left_with_a_phrase(
    tmp_path: Path, run_tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny("hydra", tmp_path / "out")
    printed = capsys.readouterr().out
    for path in (tmp_path / "out").iterdir():
        assert phrase(path.name)
        assert re.search(rf"^  {re.escape(path.name)} +\S.{{10,}}$", printed, re.MULTILINE)


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(("recipe", "more"), [("magnitude", {"rounds": 3}), ("harp", {})])
def test_the_stages_are_those_that_are_trained(
    recipe: str, more: dict[str, Any], tmp_path: Path, words: Words
) -> None:
    epochs = {"epochs": 2, "lr": 0.05}
    settings = {
        **{"model": "tiny_networks:net", "data": {"name": "folder", "folder": "images"}},
        **{"objective": {"steps": 1}, "pretrain": epochs, "prune": epochs, "finetune": epochs},
        **{"device": "cpu", "threads": 1, **more},
    }
    config = build(RECIPES[recipe][0], settings, where="test")
    train_recipe(recipe, Run(tmp_path, config))
    trained = [path.name.partition(".")[0] for path in tmp_path.glob("*.safetensors")]
    assert set(trained) == set(stages_of(recipe, config))


def test_the_time_left_is_that_of_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("robust_plugin.recipes.runtime.progress.time.monotonic", lambda: now[0])
    progress = Progress({"pretrain": 10, "prune": 4, "finetune": 6})
    with progress.stage("pretrain", steps=10, done=8, folder=tmp_path):
        for _ in range(2):
            progress.update()
            now[0] += 3.0  # validation and all
        assert progress.left == pytest.approx(3.0 * 10)
    with progress.stage("prune", steps=4, done=0, folder=tmp_path):
        progress.update()
        now[0] += 3.0
        assert progress.left == pytest.approx(3.0 * 9)
    assert clock(3 * 86400 + 3723) == "3 d 1:02:03" and clock(59.6) == "0:01:00"


def test_a_pattern_stands_in_the_place_of_the_density_that_it_replaces(
    tmp_path: Path, at_workplace: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("hydra", tmp_path / "out", "--pattern=2:4"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert ", pattern 2:4; measured on cpu" in printed and "density 0.3" not in printed
    assert re.search(r"576 of +1,152\n.* 128 of +256\n", printed)  # two of every 4
