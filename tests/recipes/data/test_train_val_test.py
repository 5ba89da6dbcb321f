"""A library that a data set needs and that is missing is named with how to install it."""

import sys

import pytest

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.train_val_test import import_library


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"sklearn.datasets is needed .*robust-plugin\[recipes\]"):
        load_data("digits")


def test_a_library_is_imported() -> None:
    assert import_library("json").loads("[1]") == [1]
