"""Load a data set by its name, with ``load_data``."""

from __future__ import annotations

from pathlib import Path

from robust_plugin.recipes.data.digits import TEST_POINTS, digits
from robust_plugin.recipes.data.image_sets import (
    LAYOUT,
    RESIZED_CROP,
    TORCHVISION,
    image_folder,
    torchvision_set,
)
from robust_plugin.recipes.data.images import AUGMENTATIONS
from robust_plugin.recipes.data.train_val_test import Data

NAMES = ("digits", "folder", *TORCHVISION)
_VALIDATION = 0.1  # default share of the training points, for all data sets but digits


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
        name: "digits" (scikit-learn's 1797 8x8 digits), "folder" (images in torchvision's
            ImageFolder layout), "cifar10", "cifar100" or "svhn" (torchvision's files).
        folder: folder that holds the files; "digits" needs none.
        validation: share of the training points to hold out, in (0, 1), stratified by class. None
            for 0.1; with "digits", None holds out 200 points and leaves 1197 to train on.
        seed: seed of the choice of the validation points. Keep it the same for all training seeds,
            so that runs are compared on the same points. The test points do not depend on it.
        download: download missing files of "cifar10", "cifar100" or "svhn".
        image_size: only for "folder": the shorter side of the images is resized to this number of
            pixels, and the centre square is cropped. With the augmentation "resized-crop+flip" it
            is the side of the crop, by default 224.
        augmentation: random changes of the training points, drawn from torch's global generator:
            "none", "crop" (at a random place, after padding by 4 pixels), "flip" (left to right) or
            "crop+flip"; "digits" allows "none" only. None for crop+flip with CIFAR, crop with SVHN,
            and none with "digits" and "folder", whose images may not allow it. "folder" also allows
            "resized-crop+flip", as for ImageNet: a crop of 8 to 100 % of the image's area, with an
            aspect ratio of 3/4 to 4/3, is resized. Validation and test points are then resized to
            256/224 of the crop's side, and their centre is cropped.
        test: only for "digits": number of points to hold out as test points; None for 400.

    Returns:
        Data: the training, validation and test points. Images are decoded once, when the first of
        them is used, and stay in memory. If they would take more than ``images.LIMIT`` bytes, they
        are read from disk at each use.

    Raises:
        ValueError: for an unknown name or augmentation, an argument that the data set does not
            support, a missing folder or one with another layout, or a validation share that leaves
            a class without training points.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; legal are {', '.join(NAMES)}")
    _check_supported(name, augmentation=augmentation, image_size=image_size, test=test)
    if name == "digits":
        return digits(validation, seed=seed, test_points=TEST_POINTS if test is None else test)
    if folder is None or not (download or Path(folder).is_dir()):
        layout = LAYOUT if name == "folder" else "the files as torchvision stores them"
        given = "give --data.folder" if folder is None else f"no folder {folder}"
        raise ValueError(f"data set {name!r}: {given}; expected in it: {layout}")
    folder, validation = Path(folder), _VALIDATION if validation is None else validation
    if name == "folder":
        return image_folder(
            folder,
            validation,
            seed=seed,
            image_size=image_size,
            augmentation=augmentation or "none",
        )
    return torchvision_set(
        name, folder, validation, seed=seed, download=download, augmentation=augmentation
    )


def _check_supported(
    name: str, *, augmentation: str | None, image_size: int | None, test: int | None
) -> None:
    """Raise a ValueError for an argument of ``load_data`` that the data set does not support."""
    legal = {"digits": ("none",), "folder": (*AUGMENTATIONS, RESIZED_CROP)}.get(name, AUGMENTATIONS)
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
