"""The files of a run, each with a phrase."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robust_plugin.recipes.catalogue.run_files import files_of, phrase


def test_a_run_lists_all_it_left_with_a_phrase(
    tmp_path: Path, run_tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny("hydra", tmp_path / "out")
    printed = capsys.readouterr().out
    for path in (tmp_path / "out").iterdir():
        assert phrase(path.name)
        assert re.search(rf"^  {re.escape(path.name)} +\S.{{10,}}$", printed, re.MULTILINE)


def test_results_come_first_and_unknown_files_are_left_out() -> None:
    names = ["prune.safetensors", "notes.txt", "log.jsonl", "pretrain.best.safetensors"]
    lines = files_of([*names, "model.safetensors"], sizes={"model.safetensors": 2_340_000})
    first, *others = (line.split() for line in lines.splitlines())
    assert first[:3] == ["model.safetensors", "2.3", "MB"]
    assert [words[0] for words in others] == [names[2], names[3], names[0]]
    assert "prune after its last epoch" in lines
    assert "pretrain after the epoch with the best validation" in lines
    assert "MB" not in files_of(names) and phrase("notes.txt") == ""
