"""Extra training images, which take a fixed share of each batch.

They are pseudo-labelled or generated images, as in robust self-training (Carmon et al. 2019).
HYDRA's published accuracies on CIFAR-10 use 500,000 of them, 128 beside 128 real images in each
batch. Files are .npz or .npy. A pickle is never read, since loading one can run any code.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from robust_plugin.recipes.data.batches import generator_of
from robust_plugin.recipes.data.images import Resident, augmented, in_unit
from robust_plugin.recipes.data.train_val_test import Data

_CPU = torch.device("cpu")
_IMAGES = ("images", "image", "data")
_LABELS = ("labels", "label", "targets")
_LAYOUT = (
    f"an .npz with {' or '.join(_IMAGES)} (uint8, [N, H, W, C] or [N, C, H, W]) and "
    f"{' or '.join(_LABELS)} (integers, [N]), or a folder with images.npy and labels.npy"
)


class Extra(Resident):
    """A data set of extra images, as bytes in memory or in a memory-mapped file.

    Args:
        images: uint8, shape [N, C, H, W].
        labels: integers, shape [N].
        augmentation: random changes of the images, one of ``images.AUGMENTATIONS``.
    """

    def __init__(self, images: Tensor, labels: Tensor, augmentation: str = "none") -> None:
        super().__init__(TensorDataset(images, labels), augmentation)
        self.images, self.labels = images, labels

    def plain(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return images and labels without augmentation, on a device.

        Only the chosen images are copied to the device.

        Args:
            rows: indices of the points, shape [B].
            device: device of the result.

        Returns:
            tuple: images, float32 in [0, 1], shape [B, C, H, W], and labels, shape [B].
        """
        return in_unit(self.images[rows].to(device)), self.labels[rows].to(device)


class Mixed(Dataset[Any]):
    """Real and extra training points as one data set; an epoch is one pass over the real points.

    Args:
        real: the real training points; they have the indices 0 to len(real) - 1.
        extra: the extra points, whose indices follow. Each epoch chooses from them at random; none
            is used twice in an epoch before all were used once.
        share: share of extra points in each batch, in (0, 1).
    """

    def __init__(self, real: Dataset[Any], extra: Dataset[Any], *, share: float) -> None:
        self.real, self.extra, self.share = real, extra, share
        self._n, self._more = len(cast(Sized, real)), len(cast(Sized, extra))

    def __len__(self) -> int:
        return self._n + self._more

    def __getitem__(self, index: int) -> Any:
        x, y = self.real[index] if index < self._n else self.extra[index - self._n]
        return x, int(y)

    def of_batch(self, batch_size: int) -> tuple[int, int]:
        """Return how many real and how many extra points a batch has, at least 1 of each."""
        extra = min(batch_size - 1, max(1, round(self.share * batch_size)))
        return batch_size - extra, extra

    def steps(self, *, batch_size: int) -> int:
        """Return the number of batches in one epoch, for a number of points per batch."""
        return math.ceil(self._n / self.of_batch(batch_size)[0])

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of one epoch, each as the list of the indices of its points.

        The last batch may be shorter; it has the same share of extra points.

        Args:
            batch_size: number of points per batch.
            seed: seed of the run.
            epoch: index of the epoch, from 0.
        """
        real, extra = self.of_batch(batch_size)
        generator = generator_of(seed, epoch)
        order = torch.randperm(self._n, generator=generator).tolist()
        found: list[list[int]] = []
        more: list[int] = []
        for first in range(0, self._n, real):
            rows = order[first : first + real]
            needed = round(len(rows) * extra / real)
            while len(more) < needed:
                more += (torch.randperm(self._more, generator=generator) + self._n).tolist()
            found.append(rows + more[:needed])
            more = more[needed:]
        return found


class MixedResident(Mixed):
    """Real and extra points as one data set that is kept in memory and returns whole batches."""

    real: Resident
    extra: Resident

    def batch(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return images, augmented, and labels on a device.

        Args:
            rows: indices of the points, shape [B].
            device: device of the result.

        Returns:
            tuple: images, float32 in [0, 1], shape [B, C, H, W], and labels, shape [B].
        """
        n = len(self.real)
        own = rows < n
        parts = self.real.plain(rows[own], device), self.extra.plain(rows[~own] - n, device)
        # The parts below are joined with the real points first; order has the place of each row.
        order = torch.cat([own.nonzero(), (~own).nonzero()]).flatten().argsort().to(device)
        x, y = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return augmented(x, self.real.augmentation), y


def with_extra(data: Data, path: Path, *, share: float, batch_size: int) -> Data:
    """Return the data with extra training points, which get the same augmentation as the real ones.

    Args:
        data: the real data; its validation and test points do not change.
        path: an .npz file, or a folder with images.npy and labels.npy.
        share: share of extra points in each batch, in (0, 1).
        batch_size: number of points per batch, to refuse a share that would leave no real or no
            extra point in a batch.

    Raises:
        ValueError: for a missing file or key, a wrong shape or dtype, labels out of range, or a
            share that is outside (0, 1) or leaves no real or no extra point in a batch.
    """
    if not 0 < share < 1 or not 1 <= round(share * batch_size) < batch_size:
        raise ValueError(
            f"data.extra_share is {share} of batches of {batch_size}; legal: in (0, 1), at least "
            "one point of either kind in a batch."
        )
    images, labels = _read(Path(path))
    first = _channels_first(images, data.shape, path)
    wrong_labels = labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images)
    if wrong_labels or len(labels) == 0:
        raise ValueError(
            f"{path} has labels of dtype {labels.dtype} and shape {labels.shape} for "
            f"{len(images)} images; legal: one integer per image, at least one."
        )
    if labels.min() < 0 or labels.max() >= data.classes:
        raise ValueError(
            f"{path} has labels from {labels.min()} to {labels.max()}; legal: 0 to "
            f"{data.classes - 1}, {data.name} has {data.classes} classes."
        )
    placed = torch.from_numpy(images) if first else torch.from_numpy(images).permute(0, 3, 1, 2)
    extra = Extra(
        placed,
        torch.from_numpy(labels.astype(np.int64)),
        getattr(data.train, "augmentation", "none"),
    )
    kind = MixedResident if isinstance(data.train, Resident) else Mixed
    return dataclasses.replace(data, train=kind(data.train, extra, share=share))


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images and labels in an .npz file, or in a folder of two .npy files."""
    files = (path / "images.npy", path / "labels.npy")
    if not path.exists():
        raise ValueError(f"data.extra: there is no {path}; expected: {_LAYOUT}.")
    if path.is_dir() and not all(file.is_file() for file in files):
        raise ValueError(f"data.extra: {path} lacks images.npy or labels.npy; expected: {_LAYOUT}.")
    try:
        if path.is_dir():  # memory-mapped: only the images in use are read, and nothing is written
            return (
                np.load(files[0], mmap_mode="c", allow_pickle=False),
                np.load(files[1], allow_pickle=False),
            )
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it is one array")
        with content:
            return _one_of(content, _IMAGES), _one_of(content, _LABELS)
    # These are NumPy's errors; none of them names the file.
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"data.extra: {path}: {error}; expected: {_LAYOUT}.") from error


def _one_of(content: Any, names: tuple[str, ...]) -> NDArray[Any]:
    """Return the array in an .npz file under the first of the names that the file has."""
    for name in names:
        if name in content.files:
            found: NDArray[Any] = content[name]
            return found
    raise ValueError(f"it has the keys {', '.join(content.files)} and none of {', '.join(names)}")


def _channels_first(images: NDArray[Any], shape: tuple[int, int, int], path: Path) -> bool:
    """Return whether images have the shape [N, C, H, W] (True) or [N, H, W, C] (False).

    Args:
        images: the images.
        shape: (C, H, W) of one image of the real data.
        path: path of the file of the images, for the error message.

    Raises:
        ValueError: for images of another shape, or that are not uint8.
    """
    channels, height, width = shape
    legal = {(channels, height, width): True, (height, width, channels): False}
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in legal:
        raise ValueError(
            f"{path} has images of dtype {images.dtype} and shape {images.shape}; legal here: "
            f"uint8, [N, {height}, {width}, {channels}] or [N, {channels}, {height}, {width}]."
        )
    return legal[images.shape[1:]]
