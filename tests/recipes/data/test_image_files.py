"""Image files with labels, as a data set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles

COLOURS = np.arange(48).reshape(4, 4, 3).astype(np.uint8)


def test_files_are_read_in_the_mode_and_over_the_background_that_is_set(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "b.png")
    files = ImageFiles([tmp_path / "a.png", tmp_path / "b.png"], [3, 5])
    image, label = files[0]
    assert np.array_equal(np.asarray(image), COLOURS) and label == 3 and len(files) == 2
    with pytest.raises(ValueError, match="b.png .* has transparent pixels"):
        files[1]
    files.mode, files.background = "L", "white"
    image, label = files[1]
    assert np.array_equal(np.asarray(image), np.full((4, 4), 255)) and label == 5
    assert files.name_of(1) == str(tmp_path / "b.png")


def test_the_parts_of_a_data_set() -> None:
    train, test, own = (ImageFiles(["a"], [0]) for _ in range(3))
    assert LabelledFiles("x", Path(), ("a",), train, test).parts == {"train": train, "test": test}
    three = LabelledFiles("x", Path(), ("a",), train, test, own).parts
    assert list(three) == ["train", "validation", "test"] and three["validation"] is own
