"""Make the training, validation and test points of a data set from its images.

``data_of_files`` checks image files, decides whether they have one channel or three, and holds out
validation points. ``as_points`` brings images of any source to one size and keeps them in memory if
they fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

from robust_plugin.recipes.data.image_checks import check_images
from robust_plugin.recipes.data.image_files import LabelledFiles
from robust_plugin.recipes.data.images import LIMIT, Resident, View
from robust_plugin.recipes.data.pixels import Background
from robust_plugin.recipes.data.splits import hold_out
from robust_plugin.recipes.data.train_val_test import Data, import_library
from robust_plugin.recipes.runtime.progress import shows_progress

Colour = Literal["auto", "rgb", "grey"]

# ImageNet's augmentation: a random part of the image, resized. Validation and test points are then
# the centre of a slightly larger image.
RESIZED_CROP = "resized-crop+flip"
_RESIZED_CROP_SIZE = 224
_CENTRE = 224 / 256  # side of the centre crop, as a share of the image's shorter side
VALIDATION = 0.1  # default share of the training points to hold out


@dataclass(frozen=True)
class Treatment:
    """What is done to the images of a data set.

    Attributes:
        augmentation: random changes of the training images.
        image_size: side in pixels that images are resized and cropped to; None keeps their size,
            except with the augmentation "resized-crop+flip", where it is 224.
        colour: "rgb" for three channels, "grey" for one, "auto" for one if all images are
            greyscale.
        background: colour behind transparent pixels; "refuse" accepts none.
    """

    augmentation: str = "none"
    image_size: int | None = None
    colour: Colour = "auto"
    background: Background = "refuse"

    @property
    def side(self) -> int | None:
        """Side of the images in pixels; None if they keep their size."""
        if self.augmentation == RESIZED_CROP:
            return self.image_size or _RESIZED_CROP_SIZE
        return self.image_size


class Part(NamedTuple):
    """Chosen images of a data set.

    Attributes:
        images: data set of (Pillow image, label).
        indices: indices of the chosen images.
    """

    images: Any
    indices: Sequence[int]


def data_of_files(
    files: LabelledFiles, validation: float | None, *, seed: int, treatment: Treatment
) -> Data:
    """Check image files and make the data of a run from them.

    A line on stderr says what becomes of images that are not plain RGB.

    Args:
        files: the image files.
        validation: share of the training images to hold out, in (0, 1); None for 0.1. It must be
            None if the files have validation images of their own.
        seed: seed of the choice of the validation images.
        treatment: what is done to the images.

    Raises:
        ValueError: if a file cannot be read, if images differ in size and are not resized, or for
            an illegal share.
    """
    for part in files.parts.values():
        part.background = treatment.background
    held_out = _validation_indices(files, validation, seed=seed)
    checked = check_images(files, one_size=treatment.side is None)
    grey = treatment.colour == "grey" or (treatment.colour == "auto" and checked.grey)
    for part in files.parts.values():
        part.mode = "L" if grey else "RGB"
    said = checked.describe(files.name, grey=grey, background=treatment.background)
    if said and shows_progress():
        print(said, file=sys.stderr)
    return as_points(
        files.name,
        train=Part(files.train, held_out[0]),
        validation=Part(files.validation or files.train, held_out[1]),
        test=Part(files.test, range(len(files.test))),
        class_names=files.class_names,
        treatment=treatment,
        content=checked.content,
    )


def _validation_indices(
    files: LabelledFiles, validation: float | None, *, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the indices of the training images, and of the validation images."""
    if files.validation is None:
        share = VALIDATION if validation is None else validation
        return hold_out(files.train.targets, share, seed=seed)
    if validation is not None:
        raise ValueError(
            f"validation={validation!r}, but {files.where} has validation images of its own; leave "
            "--data.validation out."
        )
    return range(len(files.train)), range(len(files.validation))


def as_points(
    name: str,
    *,
    train: Part,
    validation: Part,
    test: Part,
    class_names: tuple[str, ...],
    treatment: Treatment,
    content: str = "",
) -> Data:
    """Make the training, validation and test points from images.

    Args:
        name: name of the data set in reports.
        train: the training images.
        validation: the validation images, which may be of the same data set.
        test: the test images.
        class_names: names of the classes, in the order of the labels.
        treatment: what is done to the images.
        content: digest of the content of the images; empty if there is none.
    """
    transforms = import_library("torchvision.transforms")
    steps: list[Callable[[Any], Any]] = [transforms.ToTensor()]
    resized, side = treatment.augmentation == RESIZED_CROP, treatment.side
    if side is not None:
        shorter = round(side / _CENTRE) if resized else side
        steps = [transforms.Resize(shorter), transforms.CenterCrop(side), *steps]
    plain = transforms.Compose(steps)
    channels, height, width = plain(train.images[0][0]).shape
    shape = (channels, height, width)
    number = sum(len(each.indices) for each in (train, validation, test))
    fits = number * channels * height * width <= LIMIT

    def points(part: Part, augmentation: str = "none") -> Dataset[Any]:
        if fits:
            return Resident(View(*part, shape=shape, transform=plain), augmentation)
        return View(*part, shape=shape, transform=plain, augmentation=augmentation)

    def training() -> Dataset[Any]:
        if not resized:
            return points(train, treatment.augmentation)
        # These images are not kept in memory, since each epoch uses other pixels of the file. They
        # are cropped before they become tensors, since only few pixels of a large image are needed.
        crop = transforms.RandomResizedCrop(side)
        transform = transforms.Compose([crop, transforms.ToTensor()])
        return View(*train, shape=shape, transform=transform, augmentation="flip")

    return Data(
        name,
        train=training(),
        validation=points(validation),
        test=points(test),
        classes=len(class_names),
        shape=shape,
        class_names=class_names,
        content=content,
    )
