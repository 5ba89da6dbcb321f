"""Planted data for comparisons, and a count of the epochs that they train."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.training import loop as training_module
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training.loop import _epoch


@pytest.fixture
def use(at_workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Data], None]:
    return lambda data: monkeypatch.setattr(run_module, "data_of", lambda config: data)


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many epochs each stage was trained for, over all runs."""
    seen: Counter[str] = Counter()

    def counted(run: Any, name: str, *rest: Any) -> float:
        seen[name] += 1
        return _epoch(run, name, *rest)

    monkeypatch.setattr(training_module, "_epoch", counted)
    return seen
