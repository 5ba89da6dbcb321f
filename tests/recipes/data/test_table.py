"""Images that a CSV or JSONL file names."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_images import labels

from robust_plugin.recipes.data.datasets import load_data


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images below the folder "pictures", the value of whose pixels is their number."""
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        pixels = np.full((6, 6, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def rows(split: bool = True) -> list[dict[str, Any]]:
    """Rows of 20 training, 8 validation and 12 test images of two classes."""
    found: list[dict[str, Any]] = []
    for number in range(40):
        part = "train" if number < 20 else "val" if number < 28 else "test"
        row = {"path": f"pictures/{number}.png", "label": "dog" if number % 2 else "cat"}
        found.append({**row, "split": part} if split else row)
    return found


def write(path: Path, found: Iterable[dict[str, Any]], delimiter: str = ",") -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in found) + "\n\n")
        return path
    found = list(found)
    lines = [found[0].keys(), *(row.values() for row in found)]
    text = "\r\n".join(delimiter.join(map(str, line)) for line in lines)
    path.write_text(text, encoding="utf-8-sig")  # as spreadsheets do
    return path


def numbers(part: Any) -> dict[int, int]:
    """The label of each image by its number."""
    return {round(float(x[0, 0, 0]) * 255): y for x, y in (part[i] for i in range(len(part)))}


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.jsonl", "")]
)
def test_images_get_the_part_and_the_label_of_their_row(
    name: str, delimiter: str, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    data = load_data("table", folder=write(images / name, rows(), delimiter))
    assert (data.name, data.classes, data.shape) == ("a", 2, (3, 6, 6))
    assert data.class_names == ("cat", "dog")
    for part, expected in (
        (data.train, range(20)),
        (data.validation, range(20, 28)),
        (data.test, range(28, 40)),
    ):
        assert numbers(part) == {number: number % 2 for number in expected}
    assert {data.test[i][1] for i in range(4)} == {0, 1}  # the first ones are of all classes


def test_without_splits_a_fifth_are_test_images_of_all_classes(images: Path) -> None:
    file = write(images / "a.csv", rows(split=False))
    data = load_data("table", folder=file, validation=0.25)
    assert [len(each) for each in (data.train, data.validation, data.test)] == [24, 8, 8]  # type: ignore[arg-type]
    assert labels(data.test) == {0: 4, 1: 4}
    parts = [set(numbers(each)) for each in (data.train, data.validation, data.test)]
    assert set.union(*parts) == set(range(40)) and sum(map(len, parts)) == 40
    other = load_data("table", folder=file, validation=0.25, seed=1)
    assert numbers(other.test) == numbers(data.test)
    assert numbers(other.validation) != numbers(data.validation)
    assert len(load_data("table", folder=file, test=10).test) == 10  # type: ignore[arg-type]


def test_labels_that_are_numbers_are_in_the_order_of_their_values(images: Path) -> None:
    found = [{**row, "label": (10, 9, 100)[i % 3]} for i, row in enumerate(rows())]
    data = load_data("table", folder=write(images / "a.jsonl", found))
    assert data.class_names == ("9", "10", "100")
    assert numbers(data.train)[0] == 1 and numbers(data.train)[1] == 0


def test_absolute_paths_are_as_good(images: Path, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "a.csv"
    write(file, [{**row, "path": images / row["path"]} for row in rows()])
    assert len(load_data("table", folder=file).train) == 20  # type: ignore[arg-type]


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    found = rows()
    found[number] = {**found[number], **values}
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(3, split="tset"), "line 5: split is 'tset'; legal: train, validation, test"),
        (changed(3, split=""), "line 5: split is empty"),
        (changed(3, label=""), "line 5: label is empty"),
        (changed(3, path="pictures/7.png"), "names .*7.png 2 times, in the lines 5, 9"),
        (changed(3, path="pictures/99.png"), "1 of 40 image files of .*99.png does not exist"),
        (changed(30, label="emu"), "the classes emu have no training image"),
        ([{**row, "split": "train"} for row in rows()], "has no image with split test"),
        ([{"file": "a", "label": "b"}], "has the columns file, label; expected .* path and label"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(
    found: list[dict[str, Any]], message: str, images: Path
) -> None:
    file = write(images / "a.csv", found)
    with pytest.raises(ValueError, match=message):
        load_data("table", folder=file)


def test_files_that_are_no_tables_are_refused(images: Path) -> None:
    for name, text, message in (
        ("a.txt", "", r"a.txt is no table; expected a .csv, .tsv or .jsonl"),
        ("a.csv", "", "has the columns none"),
        ("b.csv", "path,label\n", "b.csv has no rows"),
        ("a.jsonl", '{"path": 1', "line 1: .*; expected one JSON object"),
        ("b.jsonl", "[1]", "line 1 is no JSON object"),
    ):
        (images / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_data("table", folder=images / name)
    (images / "c.csv").write_bytes("path,label\nä".encode("latin-1"))
    with pytest.raises(ValueError, match="c.csv is not in UTF-8"):
        load_data("table", folder=images / "c.csv")
    with pytest.raises(ValueError, match="no file .*pictures; expected"):
        load_data("table", folder=images / "pictures")
    with pytest.raises(ValueError, match="test=5, but .* has a column split"):
        load_data("table", folder=write(images / "d.csv", rows()), test=5)
