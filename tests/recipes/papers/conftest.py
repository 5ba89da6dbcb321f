"""A data set and a training run for the tests of the papers' recipes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paper_recipes import settings
from torch import nn

from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training.run import Run


@pytest.fixture(autouse=True)
def on_planted(
    at_workplace: Path, planted: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = planted(signal=0.15, noise=0.6)  # hard enough that gradients do not vanish
    monkeypatch.setattr(run_module, "data_of", lambda config: data)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[nn.Module, Path]]:
    def run(recipe: str, **more: Any) -> tuple[nn.Module, Path]:
        return train_recipe(recipe, Run(tmp_path, settings(recipe, **more))), tmp_path

    return run
