"""Data sets by name: arguments and folders that are refused."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_images import write_images

from robust_plugin.recipes.data.datasets import load_data


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere.*train/<class>/"):
        load_data("folder", folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'cifar10': give --data.folder"):
        load_data("cifar10")
    with pytest.raises(ValueError, match=r"train is no folder of classes.*train/<class>/"):
        load_data("folder", folder=tmp_path)
    write_images(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="emu"):
        load_data("folder", folder=tmp_path)
    Image.new("RGB", (12, 12)).save(tmp_path / "train" / "emu" / "0.png")
    with pytest.raises(ValueError, match="differ in their classes.*emu"):
        load_data("folder", folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mnist"},
            r"'mnist' \(did you mean mnist5k\?\); legal are digits, mnist5k, folder, table",
        ),
        ({"name": "mnist5k", "augmentation": "flip"}, "='flip' of 'mnist5k'; legal: none, crop$"),
        ({"name": "cifar10", "colour": "grey"}, "colour='grey' with 'cifar10': only for folder"),
        ({"name": "digits", "background": "white"}, "background='white' with 'digits'"),
        ({"name": "digits", "download": True}, "download with 'digits': only cifar10, cifar100"),
        ({"name": "table"}, "'table': give --data.folder.*columns path and label"),
        ({"name": "huggingface"}, "'huggingface': give --data.folder.*save_to_disk"),
        ({"name": "svhn", "augmentation": "rotate"}, "='rotate' of 'svhn'; legal: none, crop"),
        ({"name": "digits", "augmentation": "flip"}, "='flip' of 'digits'; legal: none$"),
        ({"name": "digits", "image_size": 32}, "image_size=32 with 'digits'"),
        ({"name": "digits", "validation": 0.0}, "validation=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)


def test_the_digits_test_points_can_be_more(tmp_path: Path) -> None:
    data = load_data("digits", test=500)
    sizes = [len(part) for part in (data.train, data.validation, data.test)]  # type: ignore[arg-type]
    assert sizes == [1097, 200, 500]
    with pytest.raises(ValueError, match="test=500 with 'folder'"):
        load_data("folder", folder=tmp_path, test=500)
    with pytest.raises(ValueError, match="test=0"):
        load_data("digits", test=0)
