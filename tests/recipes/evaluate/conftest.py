"""A finished run that the tests of this room evaluate."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_plugin.recipes.cli import main

Words = Callable[..., list[str]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, workplace: Path, words: Words) -> Path:
    """A finished run whose accuracies lie strictly between chance and 100 %."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(sys, "path", list(sys.path))
        options = ("--pretrain.epochs=6", "--finetune.epochs=6", "--threat.eps=20/255")
        measures = ("--evaluation.autoattack=8", "--evaluation.curve=24")
        assert main(words("hydra", out, *options, *measures)) == 0
    return out


@pytest.fixture
def run(finished: Path, at_workplace: Path) -> Path:
    return finished
