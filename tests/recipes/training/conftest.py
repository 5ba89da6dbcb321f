"""Data that all runs of this room train on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.training import run as run_module


@pytest.fixture
def on_planted(
    at_workplace: Path, planted: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Data], None]:
    """Let all runs use a planted data set, or the one that this function is called with."""

    def use(data: Data) -> None:
        monkeypatch.setattr(run_module, "data_of", lambda config: data)

    use(planted())
    return use
