"""Image folders that are kept in memory, or read from disk at each use."""

import pytest


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image fits in memory."""
    monkeypatch.setattr("robust_plugin.recipes.data.image_parts.LIMIT", 0)


@pytest.fixture(params=["in memory", "streamed"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "streamed":
        request.getfixturevalue("streamed")
