"""``ImageFiles``: the image files of one part of a data set, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch.utils.data import Dataset

from robust_plugin.recipes.data.pixels import Background, Mode, read_image


class ImageFiles(Dataset[Any]):
    """Image files with labels, as a data set of pairs (Pillow image, label).

    Args:
        paths: paths of the files.
        targets: label of each file.

    Attributes:
        mode: mode that images are read in, "RGB" or "L".
        background: colour behind transparent pixels.
    """

    mode: Mode = "RGB"
    background: Background = "refuse"

    def __init__(self, paths: Sequence[Path | str], targets: Sequence[int]) -> None:
        self.paths, self.targets = paths, targets

    def __len__(self) -> int:
        return len(self.targets)

    def name_of(self, index: int) -> str:
        """Return the name of a file in error messages."""
        return str(self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """Open a file to read its bytes."""
        return cast(BinaryIO, open(self.paths[index], "rb"))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with self.open(index) as file:
            image = read_image(
                file, self.name_of(index), mode=self.mode, background=self.background
            )
        return image, self.targets[index]


@dataclass(frozen=True)
class LabelledFiles:
    """The image files of a data set, before they are checked and split.

    Attributes:
        name: name of the data set in reports.
        where: the folder or file that holds the images, for messages.
        class_names: names of the classes, in the order of the labels.
        train: training images.
        test: test images, in the order in which they are used.
        validation: validation images; None to hold some of the training images out.
    """

    name: str
    where: Path
    class_names: tuple[str, ...]
    train: ImageFiles
    test: ImageFiles
    validation: ImageFiles | None = None

    @property
    def parts(self) -> dict[str, ImageFiles]:
        """The parts that the data set has, by name."""
        own = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **own, "test": self.test}
