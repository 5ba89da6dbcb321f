"""Data sets that the library datasets has saved to a folder."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robust_plugin.recipes.data.datasets import load_data

datasets = pytest.importorskip("datasets")

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


def split(first: int, n: int, label: Any = CLASSES, **more: Any) -> Any:
    """Images whose pixels have the value of their number, and labels in turn."""
    features = {
        "image": datasets.Image(),
        "label": label,
        **{name: datasets.Image() for name in more},
    }
    images = [Image.fromarray(np.full((6, 6, 3), i, np.uint8)) for i in range(first, first + n)]
    labels = [i % 2 for i in range(n)]
    if label.dtype == "string":
        labels = [("left", "right")[y] for y in labels]  # type: ignore[misc]
    rows = {"image": images, "label": labels, **{name: images for name in more}}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def one_less(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": row["label"] - 1}


def numbers(part: Any) -> dict[int, int]:
    return {round(float(x[0, 0, 0]) * 255): y for x, y in (part[i] for i in range(len(part)))}


def test_splits_columns_and_class_names_are_those_of_the_library(
    tmp_path: Path, either: None
) -> None:
    folder = saved(tmp_path / "pets", train=split(0, 20), test=split(50, 10))
    data = load_data("huggingface", folder=folder)
    assert (data.name, data.class_names, data.shape) == ("pets", ("cat", "dog"), (3, 6, 6))
    together = {**numbers(data.train), **numbers(data.validation)}
    assert together == {i: i % 2 for i in range(20)} and len(data.validation) == 2  # type: ignore[arg-type]
    assert numbers(data.test) == {50 + i: i % 2 for i in range(10)}
    assert data.content == load_data("huggingface", folder=folder).content
    other = saved(tmp_path / "other", train=split(0, 20), test=split(50, 8))
    assert data.content != load_data("huggingface", folder=other).content


def test_validation_is_used_as_such_or_as_test_where_there_is_none(tmp_path: Path) -> None:
    three = saved(tmp_path / "a", train=split(0, 20), validation=split(30, 4), test=split(50, 10))
    data = load_data("huggingface", folder=three)
    assert sorted(numbers(data.validation)) == [*range(30, 34)] and len(numbers(data.train)) == 20
    two = load_data(
        "huggingface", folder=saved(tmp_path / "b", train=split(0, 20), val=split(30, 4))
    )
    assert sorted(numbers(two.test)) == [*range(30, 34)] and len(numbers(two.train)) == 18


def test_labels_may_be_texts(tmp_path: Path) -> None:
    text = datasets.Value("string")
    data = load_data(
        "huggingface",
        folder=saved(tmp_path / "a", train=split(0, 20, text), test=split(50, 4, text)),
    )
    assert data.class_names == ("left", "right") and numbers(data.test)[51] == 1


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    train = split(0, 20)
    table = train.cast_column("image", datasets.Image(decode=False))
    rows = [dict(row) for row in table]
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:60]
    broken = datasets.Dataset.from_list(rows, features=train.features)
    folder = saved(tmp_path / "a", train=broken, test=split(50, 4))
    with pytest.raises(ValueError, match="1 of 24 .*: image 7 of .*a, train is damaged"):
        load_data("huggingface", folder=folder)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": split(0, 4)}, "holds train; expected: what DatasetDict.save_to_disk writes"),
        ({"test": split(0, 4)}, "holds test; expected"),
        (
            {"train": split(0, 4, mask=True), "test": split(0, 4, mask=True)},
            r"image \(Image\), label \(ClassLabel\), mask \(Image\), of which 2 hold images",
        ),
        (
            {"train": split(0, 4), "test": split(0, 4).rename_column("label", "y")},
            "test has no column label",
        ),
        (
            {"train": split(0, 4), "test": split(0, 4, datasets.Value("int64")).map(one_less)},
            "test: image 0 has the label -1, and 1 more have no legal one",
        ),
    ]  # fmt: skip
    for number, (splits, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            load_data("huggingface", folder=saved(tmp_path / str(number), **splits))
    split(0, 4).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(ValueError, match="holds one data set without splits"):
        load_data("huggingface", folder=tmp_path / "single")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded: .*neither a `Dataset`"):
        load_data("huggingface", folder=tmp_path / "empty")


def test_the_library_is_named_if_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"robust-plugin\[datasets\]"):
        load_data("huggingface", folder=tmp_path)
