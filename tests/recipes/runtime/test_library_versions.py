"""Versions of the libraries that are installed."""

import pytest
import torch

from robust_plugin import __version__
from robust_plugin.recipes.runtime import library_versions


def test_only_installed_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_versions, "_LIBRARIES", ("pytest", "no-such-library"))
    assert library_versions.versions() == {
        "torch": torch.__version__,
        "robust_plugin": __version__,
        "pytest": pytest.__version__,
    }
