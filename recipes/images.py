"""Points that are images: read from disk when asked for, or kept in memory.

Small images cost more to read, decode and augment one by one than a small network costs to train:
those that fit are decoded once, kept as bytes and augmented a batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robust_plugin.recipes.augmentation import augmented

LIMIT = 2**29  # bytes; CIFAR takes 184 MB, and a comparison holds them once a process


class View(Dataset[tuple[Tensor, int]]):
    """Chosen points of a data set of images, each made a tensor [C, H, W] when asked for."""

    def __init__(
        self,
        images: Dataset[Any],
        indices: Sequence[int],
        *,
        shape: tuple[int, int, int],
        transform: Callable[[Any], Tensor],
        augmentation: str = "none",
    ) -> None:
        self.images, self.indices, self.shape = images, indices, shape
        self.transform, self.augmentation = transform, augmentation

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[self.indices[index]]
        x = self.transform(image)
        if tuple(x.shape) != self.shape:  # named here, before a batch fails on it
            raise ValueError(
                f"image {self.indices[index]} has the shape {tuple(x.shape)}, the first one "
                f"{self.shape}: set image_size to bring all images to one size"
            )
        return augmented(x[None], self.augmentation)[0], int(label)


class Resident(Dataset[tuple[Tensor, int]]):
    """Images in memory from their first use on; a point is (float32 [C, H, W] in [0, 1], label).

    Args:
        points: pairs of such an image, k/255 in each value, and its label.
        augmentation: see ``augmented``.
    """

    def __init__(self, points: Dataset[Any], augmentation: str = "none") -> None:
        self.points, self.augmentation = points, augmentation

    def __len__(self) -> int:
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.batch(torch.tensor([range(len(self))[index]]))
        return x[0], int(y)

    @cached_property
    def _held(self) -> tuple[Tensor, Tensor]:
        """All images as bytes, and all labels."""
        images: Tensor | None = None
        labels = []
        for row in range(len(self)):
            x, y = cast(tuple[Tensor, int], self.points[row])
            if images is None:
                images = torch.empty(len(self), *x.shape, dtype=torch.uint8)
            images[row] = (255 * x).round().byte()
            labels.append(y)
        assert images is not None
        return images, torch.tensor(labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return points by their numbers, augmented."""
        images, labels = self._held
        return augmented(images[rows].float().div(255), self.augmentation), labels[rows]


class ResidentLoader:
    """Batches of resident images in a given order; iterated like a ``DataLoader``."""

    def __init__(self, dataset: Resident, order: Sequence[int], batch_size: int) -> None:
        self.dataset, self.order, self.batch_size = dataset, torch.tensor(order), batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.order.split(self.batch_size):
            yield self.dataset.batch(rows)
