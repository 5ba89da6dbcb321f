"""Data sets of images in files: an image folder, and CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from robust_plugin.recipes.data.images import LIMIT, Resident, View
from robust_plugin.recipes.data.pixels import read_image
from robust_plugin.recipes.data.splits import hold_out
from robust_plugin.recipes.data.train_val_test import Data, import_library


class _Torchvision(NamedTuple):
    """A data set that torchvision reads.

    Attributes:
        kind: name of the data set's class in torchvision.datasets.
        title: name of the data set in reports.
        classes: number of classes.
        augmentation: default augmentation of the training points.
    """

    kind: str
    title: str
    classes: int
    augmentation: str


TORCHVISION = {
    "cifar10": _Torchvision("CIFAR10", "CIFAR-10", 10, "crop+flip"),
    "cifar100": _Torchvision("CIFAR100", "CIFAR-100", 100, "crop+flip"),
    "svhn": _Torchvision("SVHN", "SVHN", 10, "crop"),  # no flip: a mirrored 2 is not a 2
}
# ImageNet's augmentation: a random part of the image, resized. Validation and test points are then
# the centre of a slightly larger image.
RESIZED_CROP = "resized-crop+flip"
_RESIZED_CROP_SIZE = 224
_CENTRE = 224 / 256  # side of the centre crop, as a share of the image's shorter side
LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) of images, the same classes in both"


def image_folder(
    folder: Path, validation: float, *, seed: int, image_size: int | None, augmentation: str
) -> Data:
    """Load a folder of images; the arguments are those of ``datasets.load_data``."""
    # ImageNet calls its test points val, and does not publish the labels of the set it calls test.
    test_name = "val" if (folder / "val").is_dir() and not (folder / "test").is_dir() else "test"
    train, test = (_class_folders(folder / part) for part in ("train", test_name))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"{folder / 'train'} and {folder / test_name} differ in their classes: only one of "
            f"them has {', '.join(odd)}; expected {LAYOUT}"
        )
    split = hold_out(train.targets, validation, seed=seed)
    # Folders are read class by class; the first test points should come from all classes.
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(test), generator=generator).tolist()
    return _in_parts(
        train,
        test,
        (*split, order),
        name=folder.resolve().name,
        classes=len(train.classes),
        augmentation=augmentation,
        image_size=image_size,
    )


def _class_folders(path: Path) -> Any:
    """Return a folder that has one sub-folder per class as a data set of (PIL image, label)."""
    try:
        return import_library("torchvision.datasets").ImageFolder(str(path), loader=read_image)
    except FileNotFoundError as error:  # no such folder, no class in it, or a class without images
        raise ValueError(f"{path} is no folder of classes: {error}; expected {LAYOUT}") from error


def torchvision_set(
    name: str,
    folder: Path,
    validation: float,
    *,
    seed: int,
    download: bool,
    augmentation: str | None,
) -> Data:
    """Load CIFAR-10, CIFAR-100 or SVHN; the arguments are those of ``datasets.load_data``."""
    kind, title, classes, default = TORCHVISION[name]
    dataset = getattr(import_library("torchvision.datasets"), kind)
    parts = ("train", "test") if name == "svhn" else (True, False)
    try:
        train, test = (dataset(str(folder), part, download=download) for part in parts)
    except RuntimeError as error:
        raise ValueError(f"{title} is not in {folder}, or damaged: {error}") from error
    labels = [int(label) for label in (train.labels if name == "svhn" else train.targets)]
    split = hold_out(labels, validation, seed=seed)
    return _in_parts(
        train,
        test,
        (*split, range(len(test))),
        name=title,
        classes=classes,
        augmentation=augmentation or default,
        image_size=None,
    )


def _in_parts(
    train: Any,
    test: Any,
    indices: tuple[Sequence[int], Sequence[int], Sequence[int]],
    *,
    name: str,
    classes: int,
    augmentation: str,
    image_size: int | None,
) -> Data:
    """Make the training, validation and test points from two data sets of (PIL image, label).

    Args:
        train: the data set that training and validation points are taken from.
        test: the data set that test points are taken from.
        indices: indices of the training and validation points in ``train``, and of the test points
            in ``test``.
        name: name of the data set in reports.
        classes: number of classes.
        augmentation: augmentation of the training points.
        image_size: side of the images in pixels; None keeps their size, except with the
            augmentation "resized-crop+flip", where it is 224.
    """
    transforms = import_library("torchvision.transforms")
    steps: list[Callable[[Any], Any]] = [transforms.ToTensor()]
    resized = augmentation == RESIZED_CROP
    if resized:
        image_size = image_size or _RESIZED_CROP_SIZE
    if image_size is not None:
        shorter = round(image_size / _CENTRE) if resized else image_size
        steps = [transforms.Resize(shorter), transforms.CenterCrop(image_size), *steps]
    plain = transforms.Compose(steps)
    channels, height, width = plain(train[0][0]).shape
    shape = (channels, height, width)
    fits = (len(train) + len(test)) * channels * height * width <= LIMIT

    def part(images: Any, rows: Sequence[int], augmentation: str = "none") -> Dataset[Any]:
        if fits:
            return Resident(View(images, rows, shape=shape, transform=plain), augmentation)
        return View(images, rows, shape=shape, transform=plain, augmentation=augmentation)

    def training() -> Dataset[Any]:
        if not resized:
            return part(train, indices[0], augmentation)
        # These images are not kept in memory, since each epoch uses other pixels of the file. They
        # are cropped before they become tensors, since only few pixels of a large image are needed.
        crop = transforms.RandomResizedCrop(image_size)
        transform = transforms.Compose([crop, transforms.ToTensor()])
        return View(train, indices[0], shape=shape, transform=transform, augmentation="flip")

    return Data(
        name,
        train=training(),
        validation=part(train, indices[1]),
        test=part(test, indices[2]),
        classes=classes,
        shape=shape,
    )
