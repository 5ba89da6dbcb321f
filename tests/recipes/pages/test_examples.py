"""Test points as pictures."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from robust_plugin.recipes.pages.examples import is_image, shown_examples
from robust_plugin.recipes.pages.run_facts import Example


def pixels(url: str) -> np.ndarray:
    """The red, green and blue of a picture, in [0, 1]."""
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_a_point_is_shown_clean_attacked_and_as_a_scaled_change(channels: int) -> None:
    clean = torch.linspace(0.2, 0.8, channels * 12).reshape(channels, 3, 4)
    delta = torch.zeros_like(clean)
    delta[:, 0, 0], delta[:, 2, 3] = 0.1, -0.05
    point = Example(17, 1, clean, clean + delta, (1, 0), (0.912, 0.5))
    (found,) = shown_examples([point], ["cat", "dog"])
    assert found.number == 17 and found.truth == "dog" and found.change == "0.1"
    assert found.answers == (("clean", "dog, 91 %", True), ("attacked", "cat, 50 %", False))
    for name, image in (("clean", clean), ("attacked", clean + delta), ("change", 0.5 + 5 * delta)):
        expected = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.abs(pixels(found.images[name]) - expected).max() <= 0.5 / 255 + 1e-6


def test_a_point_without_a_change_is_grey_and_what_is_no_image_is_left_out() -> None:
    image = torch.rand(3, 2, 2)
    (found,) = shown_examples([Example(0, 0, image, image, (0, 0), (1.0, 1.0))], ["a"])
    assert np.abs(pixels(found.images["change"]) - 0.5).max() <= 1 / 255
    two = torch.rand(2, 4, 4)
    assert shown_examples([Example(0, 0, two, two, (0, 0), (1.0, 1.0))], ["a"]) == []
    shapes = [(5, 1, 4, 4), (5, 3, 4, 4), (5, 2, 4, 4), (5, 7)]
    assert [is_image(torch.rand(shape)) for shape in shapes] == [True, True, False, False]
