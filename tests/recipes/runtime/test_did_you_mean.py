"""What was probably meant."""

import pytest

from robust_plugin.recipes.runtime.did_you_mean import did_you_mean, nearest


@pytest.mark.parametrize(
    ("near", "text"),
    [
        ([], ""),
        (["a"], " (did you mean a?)"),
        (["a", "b"], " (did you mean a or b?)"),
        (["a", "b", "c"], " (did you mean a, b or c?)"),
    ],
)
def test_what_is_near_is_a_question(near: list[str], text: str) -> None:
    assert did_you_mean(near) == text


def test_the_nearest_word_is_found_and_nothing_else() -> None:
    words = ["hydra", "harp", "magnitude"]
    assert nearest("hidra", words) == ["hydra"] and nearest("magnitud", words) == ["magnitude"]
    assert nearest("quantize", words) == []
