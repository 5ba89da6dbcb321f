"""The class ``Data``: a data set in three parts, for training, validation and test."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset


@dataclass(frozen=True)
class Data:
    """A data set in three parts, with pixel values in [0, 1].

    Models are chosen by the validation points, which are held out of the training points and never
    augmented. The test points are used once, at the end. Inputs are not normalised, because the
    threat model is in the units of the pixels; a network normalises in a layer of its own.

    Attributes:
        name: name of the data set in reports: "digits", "CIFAR-10", or the name of the folder.
        train: training points; they may be augmented at random each time they are used.
        validation: points held out of the training points, not augmented.
        test: test points, not augmented. The test points of an image folder are in a fixed random
            order, so that the first ones come from all classes.
        classes: number of classes; labels are 0 to classes - 1.
        shape: (channels, height, width) of one input, which is float32 in [0, 1].
        class_names: names of the classes, in the order of the labels. By default they are the
            labels themselves: "0", "1", ...
        content: digest of what the files hold, by which a run notices that they have changed; empty
            if there is none.
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    content: str = ""

    def __post_init__(self) -> None:
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))


def import_library(module: str, *, extra: str = "recipes") -> Any:
    """Import a module that a data set needs, and return it.

    Args:
        module: full name of the module, such as "torchvision.datasets".
        extra: name of the extra of this package that installs it.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this data set: pip install 'robust-plugin[{extra}]'"
        ) from error
