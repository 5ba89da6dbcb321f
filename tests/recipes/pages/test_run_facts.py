"""The facts of a run are values."""

from dataclasses import FrozenInstanceError

import pytest
from sample_run import epochs, run_facts

from robust_plugin.recipes.pages.run_facts import Layer


def test_facts_are_values() -> None:
    assert epochs() == epochs() and Layer("a", 1, 2) != Layer("a", 2, 2)
    with pytest.raises(FrozenInstanceError):
        run_facts().density = 1.0  # type: ignore[misc]
