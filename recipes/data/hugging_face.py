"""The data set "huggingface": images in a folder that the library datasets has written.

``DatasetDict.save_to_disk(folder)`` writes such a folder. Nothing is downloaded.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles
from robust_plugin.recipes.data.image_parts import Treatment, data_of_files
from robust_plugin.recipes.data.image_sets import shuffled
from robust_plugin.recipes.data.train_val_test import Data, import_library

LAYOUT = (
    "what DatasetDict.save_to_disk writes, with the splits train and test (or validation, if there "
    "is no test), one column of images and one of class labels"
)
_LABELS = ("label", "labels", "fine_label", "class", "target")


class _Stored(ImageFiles):
    """Images of one split; the bytes of an image are in the table, or in a file that it names.

    Args:
        split: the split, a data set of the library.
        column: name of the column of images.
        order: indices of the rows, in the order of the images.
        targets: label of each image.
        name: name of the split.
    """

    def __init__(
        self, split: Any, column: str, order: list[int], targets: list[int], name: str
    ) -> None:
        super().__init__([], targets)
        image = import_library("datasets", extra="datasets").Image(decode=False)
        self._images = split.select_columns([column]).cast_column(column, image)
        self._column, self._order, self._name = column, order, name

    def name_of(self, index: int) -> str:
        return f"image {self._order[index]} of {self._name}"

    def open(self, index: int) -> BinaryIO:
        found = self._images[self._order[index]][self._column]
        if found is None:
            raise ValueError(f"{self.name_of(index)} is empty")
        return open(found["path"], "rb") if found["bytes"] is None else io.BytesIO(found["bytes"])


def saved_dataset(
    folder: Path, validation: float | None, *, seed: int, treatment: Treatment
) -> Data:
    """Load a saved DatasetDict; the arguments are those of ``image_parts.data_of_files``.

    The splits train, validation and test are used as what their names say. If there is no test, the
    validation images are the test images, and some training images are held out for validation.

    Raises:
        ValueError: if the folder is no saved DatasetDict, or lacks a split or a column.
    """
    library = import_library("datasets", extra="datasets")
    try:
        splits = library.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} cannot be loaded: {error}. Expected: {LAYOUT}.") from error
    if not isinstance(splits, library.DatasetDict) or "train" not in splits:
        found = ", ".join(splits) if isinstance(splits, dict) else "one data set without splits"
        raise ValueError(f"{folder} holds {found}; expected: {LAYOUT}.")
    held = [name for name in ("validation", "val", "valid", "dev") if name in splits][:1]
    test = "test" if "test" in splits else held.pop() if held else ""
    if not test:
        raise ValueError(f"{folder} holds {', '.join(splits)}; expected: {LAYOUT}.")
    image, label = _columns(splits["train"], library, folder)
    number, names = _classes(splits["train"], label, library)
    for part in ("train", *held, test):
        if missing := {image, label} - set(splits[part].column_names):
            raise ValueError(
                f"{folder}: {part} has no column {', '.join(sorted(missing))}; expected: {LAYOUT}."
            )

    def stored(part: str) -> ImageFiles:
        values = list(splits[part][label])
        if odd := [row for row, value in enumerate(values) if value is None or value not in number]:
            raise ValueError(
                f"{folder}, {part}: image {odd[0]} has the label {values[odd[0]]!r}, and "
                f"{len(odd) - 1:,} more have no legal one; legal are the {len(number)} classes of "
                "the training images. Dataset.filter removes images without a class."
            )
        rows = list(range(len(values)))
        order = shuffled(rows) if part == test else rows
        targets = [number[values[row]] for row in order]
        return _Stored(splits[part], image, order, targets, f"{folder}, {part}")

    files = LabelledFiles(
        folder.resolve().name,
        folder,
        names,
        train=stored("train"),
        test=stored(test),
        validation=stored(held[0]) if held else None,
    )
    return data_of_files(files, validation, seed=seed, treatment=treatment)


def _columns(train: Any, library: Any, folder: Path) -> tuple[str, str]:
    """Return the names of the column of images and of the column of labels.

    Args:
        train: the training split.
        library: the library datasets.
        folder: folder of the data set, for messages.

    Raises:
        ValueError: if there is not exactly one column of images, or none of labels.
    """
    kinds = train.features
    images = [name for name, kind in kinds.items() if isinstance(kind, library.Image)]
    labels = [name for name, kind in kinds.items() if isinstance(kind, library.ClassLabel)]
    labels = labels or [name for name in _LABELS if name in kinds]
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in kinds.items())
        raise ValueError(
            f"{folder} has the columns {shown}, of which {len(images)} hold images and "
            f"{len(labels)} hold class labels; expected one of each: a column of the type Image, "
            f"and one of the type ClassLabel or with the name {' or '.join(_LABELS)}. "
            "Dataset.select_columns removes others."
        )
    return images[0], labels[0]


def _classes(train: Any, label: str, library: Any) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Return the number of each class by the value in the table, and the names of the classes.

    Without names of its own, the column's values are the names, in sorted order.
    """
    kind = train.features[label]
    if isinstance(kind, library.ClassLabel):
        return {number: number for number in range(kind.num_classes)}, tuple(kind.names)
    values = sorted(train.unique(label), key=lambda value: (value is None, value))
    return {value: number for number, value in enumerate(values)}, tuple(map(str, values))
