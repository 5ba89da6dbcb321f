"""The data set "table": images whose paths and labels are in a CSV or JSONL file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles
from robust_plugin.recipes.data.image_parts import Treatment, data_of_files
from robust_plugin.recipes.data.image_sets import shuffled
from robust_plugin.recipes.data.splits import stratified_split
from robust_plugin.recipes.data.train_val_test import Data

LAYOUT = (
    "a .csv, .tsv or .jsonl file with the columns path and label, and optionally split, whose "
    "values are train, validation and test; relative paths are relative to the folder of the file"
)
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TEST = 0.2  # share of the images that are test images, if there is no column split


class _Row(NamedTuple):
    """One image: the number of its line in the file, its path, label and part."""

    line: int
    path: Path
    label: str
    split: str


def table(
    file: Path, validation: float | None, *, seed: int, treatment: Treatment, test: int | None
) -> Data:
    """Load the images that a table names; the arguments are those of ``datasets.load_data``.

    Classes are numbered in the order of their labels: of numbers by value, of other text by
    alphabet. Without a column split, a fifth of the images, or ``test`` of them, are test images;
    they are chosen at random, stratified by class, and the same for every seed.

    Raises:
        ValueError: for a missing column or value, an unknown split, an image that is missing or in
            the table twice, or a class without training images.
    """
    rows = list(_rows(file))
    _refuse_repetitions(rows, file)
    labels = {row.label for row in rows}
    whole = all(label.lstrip("-").isdigit() for label in labels)
    names = tuple(sorted(labels, key=int) if whole else sorted(labels))
    number = {name: index for index, name in enumerate(names)}
    splits = {row.split for row in rows}
    if splits == {""}:
        points = round(_TEST * len(rows)) if test is None else test
        kept, out = stratified_split([number[row.label] for row in rows], points, seed=0)
        rows = [
            *(rows[index]._replace(split="train") for index in kept),
            *(rows[index]._replace(split="test") for index in out),
        ]
    elif "" in splits:
        line = next(row.line for row in rows if not row.split)
        raise ValueError(f"{file}, line {line}: split is empty; legal: train, validation, test.")
    elif test is not None:
        raise ValueError(
            f"test={test}, but {file} has a column split, which names the test images; leave "
            "--data.test out."
        )
    for name in ("train", "test"):
        if name not in {row.split for row in rows}:
            raise ValueError(f"{file} has no image with split {name}; expected {LAYOUT}.")
    trained = {row.label for row in rows if row.split == "train"}
    if without := [name for name in names if name not in trained]:
        raise ValueError(
            f"{file}: the classes {', '.join(without[:5])} have no training image; every class "
            "needs some."
        )

    def part(split: str) -> ImageFiles:
        own = [row for row in rows if row.split == split]
        own = shuffled(own) if split == "test" else own
        return ImageFiles([row.path for row in own], [number[row.label] for row in own])

    files = LabelledFiles(
        file.stem,
        file,
        names,
        train=part("train"),
        test=part("test"),
        validation=part("validation") if "validation" in splits else None,
    )
    return data_of_files(files, validation, seed=seed, treatment=treatment)


def _rows(file: Path) -> Iterator[_Row]:
    """Yield the rows of a table."""
    reader = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(
        file.suffix.lower()
    )
    if reader is None:
        raise ValueError(f"{file} is no table; expected {LAYOUT}.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason}); save it as UTF-8.") from error
    empty = True
    for line, row in reader(text, file):
        empty = False
        values = {str(name).strip().lower(): str(value).strip() for name, value in row.items()}
        for name in ("path", "label"):
            if not values.get(name):
                raise ValueError(f"{file}, line {line}: {name} is empty; expected {LAYOUT}.")
        split = values.get("split", "").lower()
        if split and split not in _SPLITS:
            raise ValueError(
                f"{file}, line {line}: split is {split!r}; legal: train, validation, test."
            )
        yield _Row(line, file.parent / values["path"], values["label"], _SPLITS.get(split, ""))
    if empty:
        raise ValueError(f"{file} has no rows; expected {LAYOUT}.")


def _csv(text: str, file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield number and values of each row of a table with commas, semicolons or tabs."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter, restkey="", restval="")
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"path", "label"} <= set(columns):
        raise ValueError(
            f"{file} has the columns {', '.join(columns) or 'none'}; expected {LAYOUT}, with the "
            "names of the columns in the first line."
        )
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if name}


def _jsonl(text: str, file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield number and values of each line that holds one JSON object."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: {error}; expected one JSON object.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number} is no JSON object; expected {LAYOUT}.")
        yield number, {name: value for name, value in row.items() if value is not None}


def _refuse_repetitions(rows: Sequence[_Row], file: Path) -> None:
    """Raise a ValueError if an image is in the table twice, perhaps for training and for test."""
    counts = Counter(row.path for row in rows)
    path, count = counts.most_common(1)[0]
    if count > 1:
        lines = [str(row.line) for row in rows if row.path == path]
        raise ValueError(
            f"{file} names {path} {count} times, in the lines {', '.join(lines[:5])}; each image "
            "may be named once."
        )
