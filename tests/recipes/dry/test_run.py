"""A dry run tells what a run will do, from real steps, and writes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_plugin.masks.select import kept_count
from robust_plugin.recipes.cli import main

Words = Callable[..., list[str]]


def rows(printed: str) -> dict[str, list[str]]:
    """Return the columns of the table of stages by name."""
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
        ("magnitude", ("--schedule=geometric",), {"pretrain": (2, 6), "finetune": (4, 12)}),
        (
            "gradual",
            ("--finetune.epochs=9", "--learn=both"),
            {"pretrain": (2, 6), "shrink": (3, 9), "prune": (2, 6), "finetune": (6, 18)},
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
@pytest.mark.parametrize(
    ("option", "message"), [("--density=2", "density is 2.0"), ("--model=resnet1", "'resnet1'")]
)
def test_a_dry_run_refuses_what_a_run_refuses(
    option: str, message: str, tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("hydra", tmp_path / "out", option), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_pattern_stands_in_the_place_of_the_density_that_it_replaces(
    tmp_path: Path, at_workplace: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("hydra", tmp_path / "out", "--pattern=2:4"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert ", pattern 2:4; measured on cpu" in printed and "density 0.3" not in printed
    assert re.search(r"576 of +1,152\n.* 128 of +256\n", printed)  # two of every 4
