"""Data sets in three parts: training, validation and test points, values in [0, 1].

A model is chosen by its validation points, which are held out of the training points and never
augmented; the test points are looked at once, at the end. Nothing is normalised here: the threat
model lives in the unit of the pixels, so a model normalises inside itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robust_plugin.recipes.data.batches import Drawn, batches_of, generator_of, rows_of
from robust_plugin.recipes.data.images import (
    AUGMENTATIONS,
    LIMIT,
    Batched,
    Resident,
    ResidentLoader,
    View,
)
from robust_plugin.recipes.data.pixels import read_image
from robust_plugin.recipes.data.splits import hold_out, stratified_split

# Class in torchvision.datasets, honest name, number of classes, augmentation. SVHN is not flipped:
# a mirrored 2 is no 2.
_TORCHVISION = {
    "cifar10": ("CIFAR10", "CIFAR-10", 10, "crop+flip"),
    "cifar100": ("CIFAR100", "CIFAR-100", 100, "crop+flip"),
    "svhn": ("SVHN", "SVHN", 10, "crop"),
}
NAMES = ("digits", "folder", *_TORCHVISION)
# ImageNet's: a random part of the image, resized; in the test the centre of a slightly larger one.
_RESIZED_CROP = "resized-crop+flip"
_RESIZED_CROP_SIZE = 224
_CENTRE = 224 / 256  # share of the shorter side

_DIGITS_TEST = 400  # of 1797, always the same ones
_DIGITS_VALIDATION = 200  # of the others
_VALIDATION = 0.1
_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) of images, the same classes in both"


@dataclass(frozen=True)
class Data:
    """A data set in its three parts.

    Attributes:
        name: what a report may call it: "digits", "CIFAR-10", or the folder's own name.
        train: training points, augmented at random where the data set allows it.
        validation: points held out of the training points, as they are.
        test: the test points, as they are; those of a folder shuffled once and for all, so that
            the first of them are of all classes.
        classes: the number of classes; labels are 0 to classes - 1.
        shape: (channels, height, width) of one input, float32 in [0, 1].
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    shape: tuple[int, int, int]


def load_data(
    name: str,
    *,
    folder: Path | None = None,
    validation: float | None = None,
    seed: int = 0,
    download: bool = False,
    image_size: int | None = None,
    augmentation: str | None = None,
    test: int | None = None,
) -> Data:
    """Load a data set by its name.

    Args:
        name: "digits" (scikit-learn's 1797 8x8 digits), "folder" (torchvision's ImageFolder
            layout), "cifar10", "cifar100" or "svhn" (torchvision's files).
        folder: where the files lie; "digits" needs none.
        validation: share of the training points to hold out, in (0, 1), stratified by class; by
            default 0.1, for digits 200 points (1197 are left to train).
        seed: of the choice of the validation points. Leave it alone when the training seed moves:
            runs are compared on the same points. The test points never depend on it.
        download: fetch missing files ("cifar10", "cifar100", "svhn").
        image_size: for "folder": resize the shorter side to so many pixels and crop the centre;
            with resized-crop+flip the side of the crop, by default 224.
        augmentation: of the training points, drawn from torch's global generator: "none", "crop"
            (at random, after 4 pixels of padding), "flip" (left to right), "crop+flip"; by default
            crop+flip for CIFAR, crop for SVHN, none for digits and for a folder, whose images may
            not bear it. For a folder also "resized-crop+flip", as for ImageNet: 8 to 100 % of the
            area at aspects of 3/4 to 4/3, resized; validation and test points are then resized to
            256/224 of the crop's side, and their centre is taken.
        test: how many of the digits to hold out as test points; by default 400.

    Returns:
        The three parts. Images that would take more than ``LIMIT`` bytes stay on disk and are read
        when asked for; others are decoded once, when the first of them is asked for.

    Raises:
        ValueError: an unknown name or augmentation, a missing or badly laid out folder, a
            validation share that leaves a class without training points.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; legal are {', '.join(NAMES)}")
    legal: tuple[str, ...] = (
        AUGMENTATIONS if name != "digits" else ("none",)
    )  # 8x8 digits bear none
    if name == "folder":
        legal = (*AUGMENTATIONS, _RESIZED_CROP)
    if augmentation not in (None, *legal):
        raise ValueError(f"augmentation={augmentation!r} of {name!r}; legal: {', '.join(legal)}")
    if image_size is not None and (name != "folder" or image_size < 1):
        raise ValueError(
            f"image_size={image_size!r} with {name!r}: a positive number of pixels, and only for "
            "'folder', whose images have no size of their own"
        )
    if test is not None and (name != "digits" or test < 1):
        raise ValueError(
            f"test={test} with {name!r}: a positive number of points, and only for 'digits', which "
            "come without test points of their own"
        )
    if name == "digits":
        return _digits(validation, seed, _DIGITS_TEST if test is None else test)
    if folder is None or not (download or Path(folder).is_dir()):
        layout = _LAYOUT if name == "folder" else "the files as torchvision stores them"
        given = "give --data.folder" if folder is None else f"no folder {folder}"
        raise ValueError(f"data set {name!r}: {given}; expected in it: {layout}")
    validation = _VALIDATION if validation is None else validation
    if name == "folder":
        return _image_folder(Path(folder), validation, seed, image_size, augmentation or "none")
    return _torchvision(name, Path(folder), validation, seed, download, augmentation)


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    workers: int = 0,
    part: int = 0,
    parts: int = 1,
    device: torch.device | None = None,
) -> DataLoader[Any] | ResidentLoader:
    """Make the loader of one epoch, whose batches are a function of (seed, epoch) alone.

    Make a new one for every epoch: a continued run then sees the batches of the uninterrupted one.
    Augmentation is a function of (seed, epoch, point); the global generator is left alone.

    Args:
        dataset: any dataset with a length.
        batch_size: points in a batch, over all parts; the last batch may have fewer.
        seed: the run's seed.
        epoch: the epoch's number.
        shuffle: permute the points, or keep their order.
        workers: processes that load; 0 loads in this one. Images in memory need none.
        part: which rows of each batch are loaded (``rows_of``); its last point where it has none.
        parts: into how many parts a batch is split.
        device: where batches are wanted. Images in memory are kept, augmented and put together
            there; batches of others come on the CPU, pinned for a GPU. None for the CPU.
    """
    batches = batches_of(dataset, batch_size=batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    rows = [rows_of(len(batch), part, parts) or range(len(batch))[-1:] for batch in batches]
    if isinstance(dataset, Batched):
        where = torch.device("cpu") if device is None else device
        return ResidentLoader(dataset, batches, rows, seed=seed, epoch=epoch, device=where)
    # In-memory tensors bear no augmentation.
    random = shuffle and not isinstance(dataset, TensorDataset)
    return DataLoader(
        Drawn(dataset, seed=seed, epoch=epoch) if random else dataset,
        batch_sampler=[
            [batch[row] for row in mine] for batch, mine in zip(batches, rows, strict=True)
        ],
        num_workers=workers,
        generator=generator_of(seed, epoch),
        pin_memory=device is not None and device.type == "cuda",
    )


def _digits(validation: float | None, seed: int, test_points: int) -> Data:
    bunch = _library("sklearn.datasets").load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # ink is counted to 16
    y = torch.tensor(bunch.target, dtype=torch.int64)
    rest, test = stratified_split(y.tolist(), test_points, seed=0)
    validation = _DIGITS_VALIDATION / len(rest) if validation is None else validation
    kept, held_out = hold_out(y[rest].tolist(), validation, seed=seed)
    indices = ([rest[i] for i in kept], [rest[i] for i in held_out], test)
    parts = [TensorDataset(x[part], y[part]) for part in indices]
    return Data("digits", parts[0], parts[1], parts[2], classes=10, shape=(1, 8, 8))


def _image_folder(
    folder: Path, validation: float, seed: int, image_size: int | None, augmentation: str
) -> Data:
    # ImageNet calls val what is tested on, and keeps the labels of its test points to itself.
    held = "val" if (folder / "val").is_dir() and not (folder / "test").is_dir() else "test"
    train, test = (_class_folders(folder / part) for part in ("train", held))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"{folder / 'train'} and {folder / held} differ in their classes: only one of them "
            f"has {', '.join(odd)}; expected {_LAYOUT}"
        )
    split = hold_out(train.targets, validation, seed=seed)
    classes, name = len(train.classes), folder.resolve().name
    # Folders are read class by class, and whoever takes the first points wants some of each.
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(test), generator=generator).tolist()
    return _images(name, train, test, (*split, order), classes, augmentation, image_size)


def _class_folders(path: Path) -> Any:
    try:
        return _library("torchvision.datasets").ImageFolder(str(path), loader=read_image)
    except FileNotFoundError as error:  # no such folder, no class in it, or a class without images
        raise ValueError(f"{path} is no folder of classes: {error}; expected {_LAYOUT}") from error


def _torchvision(
    name: str, folder: Path, validation: float, seed: int, download: bool, augmentation: str | None
) -> Data:
    kind, title, classes, default = _TORCHVISION[name]
    dataset = getattr(_library("torchvision.datasets"), kind)
    parts = ("train", "test") if name == "svhn" else (True, False)
    try:
        train, test = (dataset(str(folder), part, download=download) for part in parts)
    except RuntimeError as error:
        raise ValueError(f"{title} is not in {folder}, or damaged: {error}") from error
    labels = [int(label) for label in (train.labels if name == "svhn" else train.targets)]
    split = hold_out(labels, validation, seed=seed)
    indices = (*split, range(len(test)))
    return _images(title, train, test, indices, classes, augmentation or default, None)


def _images(
    name: str,
    train: Any,
    test: Any,
    indices: tuple[Sequence[int], Sequence[int], Sequence[int]],
    classes: int,
    augmentation: str,
    image_size: int | None,
) -> Data:
    """Put together what load_data promises from two datasets of (PIL image, label)."""
    transforms = _library("torchvision.transforms")
    steps: list[Callable[[Any], Any]] = [transforms.ToTensor()]
    resized = augmentation == _RESIZED_CROP
    if resized:
        image_size = image_size or _RESIZED_CROP_SIZE
    if image_size is not None:
        shorter = round(image_size / _CENTRE) if resized else image_size
        steps = [transforms.Resize(shorter), transforms.CenterCrop(image_size), *steps]
    plain = transforms.Compose(steps)
    channels, height, width = plain(train[0][0]).shape
    shape = (channels, height, width)
    of_train, of_tensors = plain, augmentation
    if resized:  # before the image is a tensor: few pixels of a large one are needed
        crop = transforms.RandomResizedCrop(image_size)
        of_train, of_tensors = transforms.Compose([crop, transforms.ToTensor()]), "flip"
    fits = (len(train) + len(test)) * channels * height * width <= LIMIT

    def part(images: Any, indices: Sequence[int], augmentation: str = "none") -> Dataset[Any]:
        if fits:
            return Resident(View(images, indices, shape=shape, transform=plain), augmentation)
        return View(images, indices, shape=shape, transform=plain, augmentation=augmentation)

    def of_training() -> Dataset[Any]:
        if not resized:
            return part(train, indices[0], of_tensors)
        # Never in memory: each epoch takes other pixels of the file.
        return View(train, indices[0], shape=shape, transform=of_train, augmentation=of_tensors)

    return Data(
        name,
        train=of_training(),
        validation=part(train, indices[1]),
        test=part(test, indices[2]),
        classes=classes,
        shape=shape,
    )


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this data set: pip install 'robust-plugin[recipes]'"
        ) from error
