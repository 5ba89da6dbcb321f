"""The plan of ``evaluate``: expected times with their range, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.dry import evaluation
from robust_plugin.recipes.evaluate.expected_time import Sample

Tree = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path, run_tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> Path:
    run_tiny("magnitude", tmp_path / "run")
    capsys.readouterr()
    return tmp_path / "run"


def tree(root: Path) -> Tree:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_times_are_those_of_the_sample_and_nothing_is_written(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(tmp_path)
    sample = Sample(16, gradient=0.1, forward=0.01, correct=16, robust=8, proofs=(2.0, 4.0))
    monkeypatch.setattr(evaluation, "sampled", lambda *_, **__: sample)
    words = ["evaluate", str(run), "--dry-run", f"--out={tmp_path / 'report'}", "--n=30"]
    words += ["--attack", "pgd", "screen", "--steps=10", "--restarts=1", "--checks=0"]
    assert main([*words, "--certify=cascade-fixed", "--eps=2/255"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("tiny_networks:net on 30 test points of images, Linf eps=2/255")
    table = {line.split("  ")[0]: line.split()[-5:] for line in lines[2:7]}
    # 30 x 10 x .1, 30 x 100 x .1, 30 x 3 x 100 x .1 x 8/16, 30 x 3: seconds
    assert table["PGD"][:2] == ["30", "0:00:30"] and table["PGD"][4] == "0:00:30"
    assert table["screening (apgd-ce, apgd-t): apgd-ce"][:2] == ["30", "0:05:00"]
    assert table["screening (apgd-ce, apgd-t): apgd-t"][:2] == ["30", "0:07:30"]
    assert table["proofs"][:2] == ["30", "0:01:30"] and table["proofs"][4] == "0:02:00"
    assert table["sum"][1] == "0:14:30"
    said = " ".join(lines)
    assert "with 16 test points: 10 ms per point for a forward pass, 100 ms with its" in said
    assert "16 of these points are classified correctly, and 8 also under PGD-10" in said
    assert "Proofs were timed on 2 points: 2, 4 s." in said
    assert f"writes report.html, report.json, report.txt, adversarial.pt to {tmp_path}" in said
    assert tree(tmp_path) == before


def test_a_real_plan_ends_in_seconds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tmp_path)
    assert main(["evaluate", str(run), "--dry-run", "--checks=10"]) == 0
    printed = capsys.readouterr().out
    for task in ("checks for obfuscated gradients", "PGD", "AutoAttack: square", "sum"):
        assert f"\n{task} " in printed
    assert "writes no report; --out FOLDER" in printed and "Proofs" not in printed
    assert tree(tmp_path) == before


def test_it_refuses_what_the_evaluation_refuses(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--n=1000"], "n is 1000; legal: 1 to 32"),
        (["--attack", "pdg"], "attack is 'pdg'"),
        (["--attack", "screen", "--steps=4"], "steps is 4, but only pgd takes steps"),
        ([f"--out={run}"], "is a run's own folder"),
    ):
        assert main(["evaluate", str(run), "--dry-run", *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", str(run), "--dry-run"]) == 2
    assert "leave torchrun out" in capsys.readouterr().err
