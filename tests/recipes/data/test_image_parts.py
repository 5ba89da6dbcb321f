"""Channels, validation images and messages of data sets that are made from image files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import points, write_images

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles
from robust_plugin.recipes.data.image_parts import Treatment, data_of_files


def in_grey(root: Path) -> None:
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)


def test_greyscale_images_stay_at_one_channel_unless_asked(
    tmp_path: Path, either: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    colour = load_data("folder", folder=tmp_path)
    assert colour.shape == (3, 12, 12) and capsys.readouterr().err == ""
    in_grey(tmp_path)
    grey = load_data("folder", folder=tmp_path)
    assert grey.shape == (1, 12, 12)
    said = capsys.readouterr().err
    assert "32 greyscale (kept at one channel); --data.colour rgb gives them three" in said
    for i in range(16):  # these images are grey, so the channels of the files were equal
        assert torch.equal(colour.test[i][0][:1], grey.test[i][0])
    three = load_data("folder", folder=tmp_path, colour="rgb")
    assert points(three.test) == points(colour.test)
    assert "32 greyscale (repeated as three equal channels)\n" in capsys.readouterr().err


def test_one_colour_image_makes_all_rgb_and_grey_can_be_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path)
    in_grey(tmp_path)
    Image.new("RGB", (12, 12), (200, 0, 0)).save(tmp_path / "test/cat/0.png")
    assert load_data("folder", folder=tmp_path).shape == (3, 12, 12)
    grey = load_data("folder", folder=tmp_path, colour="grey")
    assert grey.shape == (1, 12, 12)
    reds = [x for x, _ in (grey.test[i] for i in range(16)) if x.unique().numel() == 1]
    assert len(reds) == 1 and float(reds[0].max()) == pytest.approx(0.299 * 200 / 255, abs=1 / 255)


def test_transparent_images_get_the_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    for part in ("train", "test"):
        Image.new("RGBA", (12, 12), (9, 9, 9, 0)).save(tmp_path / part / "cat/0.png")
    with pytest.raises(ValueError, match="2 of 32 image files .*transparent.*--data.background"):
        load_data("folder", folder=tmp_path)
    data = load_data("folder", folder=tmp_path, background="white")
    assert "2 RGB with alpha (laid over white)" in capsys.readouterr().err
    assert sum(bool((data.test[i][0] == 1).all()) for i in range(16)) == 1


def test_validation_images_of_ones_own_are_used_as_they_are(tmp_path: Path) -> None:
    def part(first: int, n: int) -> ImageFiles:
        paths = [tmp_path / f"{number}.png" for number in range(first, first + n)]
        for number, path in enumerate(paths, first):
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
        return ImageFiles(paths, [number % 2 for number in range(n)])

    own: Any = part(20, 4)
    files = LabelledFiles("x", tmp_path, ("a", "b"), part(0, 10), part(10, 6), own)
    data = data_of_files(files, None, seed=0, treatment=Treatment("flip"))
    assert [len(each) for each in (data.train, data.validation, data.test)] == [10, 4, 6]  # type: ignore[arg-type]
    assert [round(float(data.validation[i][0][0, 0, 0]) * 255) for i in range(4)] == [
        *range(20, 24)
    ]
    assert data.class_names == ("a", "b") and data.classes == 2
    with pytest.raises(ValueError, match="validation=0.1, but .* has validation images of its own"):
        data_of_files(files, 0.1, seed=0, treatment=Treatment())
