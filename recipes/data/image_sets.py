"""Data sets of images in files: an image folder, and CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles
from robust_plugin.recipes.data.image_parts import (
    VALIDATION,
    Part,
    Treatment,
    as_points,
    data_of_files,
)
from robust_plugin.recipes.data.splits import hold_out
from robust_plugin.recipes.data.train_val_test import Data, import_library
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.runtime.progress import shows_progress

T = TypeVar("T")


class _Torchvision(NamedTuple):
    """A data set that torchvision reads.

    Attributes:
        kind: name of the data set's class in torchvision.datasets.
        title: name of the data set in reports.
        augmentation: default augmentation of the training points.
    """

    kind: str
    title: str
    augmentation: str


TORCHVISION = {
    "cifar10": _Torchvision("CIFAR10", "CIFAR-10", "crop+flip"),
    "cifar100": _Torchvision("CIFAR100", "CIFAR-100", "crop+flip"),
    "svhn": _Torchvision("SVHN", "SVHN", "crop"),  # no flip: a mirrored 2 is not a 2
}
LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) of images, the same classes in both"


def image_folder(
    folder: Path, validation: float | None, *, seed: int, treatment: Treatment
) -> Data:
    """Load a folder of images; the arguments are those of ``image_parts.data_of_files``."""
    # ImageNet calls its test points val, and does not publish the labels of the set it calls test.
    test_name = "val" if (folder / "val").is_dir() and not (folder / "test").is_dir() else "test"
    train, test = (_class_folders(folder / part) for part in ("train", test_name))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"{folder / 'train'} and {folder / test_name} differ in their classes: only one of "
            f"them has {', '.join(odd)}; expected {LAYOUT}"
        )
    files = LabelledFiles(
        folder.resolve().name,
        folder,
        tuple(train.classes),
        train=_files(train.samples),
        test=_files(shuffled(test.samples)),
    )
    return data_of_files(files, validation, seed=seed, treatment=treatment)


def _class_folders(path: Path) -> Any:
    """Return a folder that has one sub-folder per class as torchvision's ImageFolder.

    A line on stderr names files that torchvision passes over, by the ends of their names.
    """
    library = import_library("torchvision.datasets")
    try:
        found = library.ImageFolder(str(path))
    except FileNotFoundError as error:  # no such folder, no class in it, or a class without images
        raise ValueError(f"{path} is no folder of classes: {error}; expected {LAYOUT}") from error
    endings = library.folder.IMG_EXTENSIONS
    others = [
        Path(folder, name)
        for folder, _, names in os.walk(path, followlinks=True)
        for name in names
        if not name.startswith(".") and not name.lower().endswith(endings)
    ]
    if others and shows_progress():
        said = f"{len(others):,} files in {path} are not read, such as {others[0]}"
        print(f"{said}; read are {', '.join(endings)}", file=sys.stderr)
    return found


def _files(samples: Sequence[tuple[str, int]]) -> ImageFiles:
    """Return pairs (path, label) as a data set."""
    return ImageFiles([path for path, _ in samples], [label for _, label in samples])


def shuffled(items: Sequence[T]) -> list[T]:
    """Return test points in a random order, the same for each call.

    Files are often listed class by class, and the first test points should come from all classes.
    """
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    return [items[index] for index in order]


def torchvision_set(
    name: str,
    folder: Path,
    validation: float | None,
    *,
    seed: int,
    download: bool,
    augmentation: str | None,
) -> Data:
    """Load CIFAR-10, CIFAR-100 or SVHN; the arguments are those of ``datasets.load_data``."""
    title, default = TORCHVISION[name].title, TORCHVISION[name].augmentation
    if download and is_first():  # under torchrun one process downloads, and the others wait
        _read(name, folder, download=True)
    wait_for_all()
    train, test = _read(name, folder, download=False)
    # SVHN's classes are the digits; the others have names in their files.
    names = getattr(train, "classes", [str(digit) for digit in range(10)])
    labels = [int(label) for label in (train.labels if name == "svhn" else train.targets)]
    kept, held_out = hold_out(labels, VALIDATION if validation is None else validation, seed=seed)
    return as_points(
        title,
        train=Part(train, kept),
        validation=Part(train, held_out),
        test=Part(test, range(len(test))),
        class_names=tuple(names),
        treatment=Treatment(augmentation or default),
    )


def _read(name: str, folder: Path, *, download: bool) -> list[Any]:
    """Return the training and the test images of CIFAR-10, CIFAR-100 or SVHN.

    Args:
        name: name of the data set, a key of ``TORCHVISION``.
        folder: folder of its files.
        download: download files that are missing.

    Raises:
        ValueError: if the files are missing or damaged, or cannot be downloaded.
    """
    kind, title, _ = TORCHVISION[name]
    dataset = getattr(import_library("torchvision.datasets"), kind)
    parts = ("train", "test") if name == "svhn" else (True, False)
    try:
        return [dataset(str(folder), part, download=download) for part in parts]
    except (RuntimeError, OSError) as error:  # URLError and a full disk are OSErrors
        if download:
            raise ValueError(f"{title} cannot be downloaded to {folder}: {error}.") from error
        files = getattr(dataset, "base_folder", "train_32x32.mat and test_32x32.mat")
        raise ValueError(
            f"{title} is not in {folder}, or damaged; expected in it: {files}, as torchvision "
            "stores them. Give another --data.folder, or --data.download to download them to it."
        ) from error
