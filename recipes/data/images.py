"""Points that are images: read from disk when asked for, or kept in memory.

Small images cost more to read, decode and augment one by one than a small network costs to train:
those that fit are decoded once, kept as bytes and augmented a batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from robust_plugin.recipes.data.batches import generator_of
from robust_plugin.runtime.random import Share, drawing, seed_of, uniform_like

LIMIT = 2**29  # bytes; CIFAR takes 184 MB, and a comparison holds them once a process


_CPU = torch.device("cpu")


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
        number = self.indices[index]
        files = getattr(self.images, "samples", None)  # of torchvision's ImageFolder
        name = files[number][0] if files else f"image {number}"
        try:
            image, label = self.images[number]
        except FileNotFoundError:  # which names the file itself
            raise
        except (OSError, SyntaxError) as error:  # PIL's, and they do not name the file
            raise ValueError(f"{name} cannot be read: {error}") from error
        x = self.transform(image)
        if tuple(x.shape) != self.shape:  # named here, before a batch fails on it
            raise ValueError(
                f"{name} has the shape {tuple(x.shape)}, the first one "
                f"{self.shape}: set image_size to bring all images to one size"
            )
        return augmented(x[None], self.augmentation)[0], int(label)


@runtime_checkable
class Batched(Protocol):
    """A data set that gives whole batches at once."""

    def batch(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return points by their numbers, augmented, on a device."""


class Resident(Dataset[tuple[Tensor, int]]):
    """Images in memory from their first use on; a point is (float32 [C, H, W] in [0, 1], label).

    A device that asks for batches gets a copy of all of them: what then moves is their numbers.

    Args:
        points: pairs of such an image, k/255 in each value, and its label.
        augmentation: see ``augmented``.
    """

    def __init__(self, points: Dataset[Any], augmentation: str = "none") -> None:
        self.points, self.augmentation = points, augmentation
        self._copy: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.batch(torch.tensor([range(len(self))[index]]))
        return x[0], int(y)

    @cached_property
    def _held(self) -> tuple[Tensor, Tensor]:
        """All images as bytes, and all labels."""
        first, _ = self.points[0]
        images = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        labels = []
        for row in range(len(self)):
            x, y = cast(tuple[Tensor, int], self.points[row])
            images[row] = (255 * x).round().byte()
            labels.append(y)
        return images, torch.tensor(labels)

    def _held_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device.type == "cpu":
            return self._held
        if self._copy is None or self._copy[0].device != device:
            images, labels = self._held
            self._copy = images.to(device), labels.to(device)
        return self._copy

    def plain(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return points by their numbers, as they are, on a device."""
        images, labels = self._held_on(device)
        rows = rows.to(device)
        return in_unit(images[rows]), labels[rows]

    def batch(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return points by their numbers, augmented there, on a device."""
        x, y = self.plain(rows, device)
        return augmented(x, self.augmentation), y


def in_unit(images: Tensor) -> Tensor:
    """Return bytes as float32 k/255, the same numbers on every device."""
    # By a plain 255 a GPU multiplies by the rounded 1/255.
    return images.float() / torch.full((), 255.0, device=images.device)


class ResidentLoader:
    """Batches of resident images in a given order; iterated like a ``DataLoader``.

    Args:
        dataset: gives batches.
        batches: of all processes, as indices.
        rows: which places of each batch are wanted here.
        seed: with ``epoch`` what augmentation is drawn from, for the whole batch.
        epoch: the epoch's number.
        device: where the batches are made.
    """

    def __init__(
        self,
        dataset: Batched,
        batches: Sequence[Sequence[int]],
        rows: Sequence[Sequence[int]],
        *,
        seed: int,
        epoch: int,
        device: torch.device = _CPU,
    ) -> None:
        self.dataset, self.batches, self.rows, self.device = dataset, batches, rows, device
        self.seed, self.epoch = seed_of(seed, "augmentation"), epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = generator_of(self.seed, self.epoch)
        for batch, rows in zip(self.batches, self.rows, strict=True):
            wanted = torch.tensor([batch[row] for row in rows])
            with drawing(Share(rows, len(batch), generator)):
                found = self.dataset.batch(wanted, self.device)
            yield found


AUGMENTATIONS = ("none", "crop", "flip", "crop+flip")


_PADDING = 4  # pixels on each side before a crop, as CIFAR recipes have it


def augmented(x: Tensor, augmentation: str) -> Tensor:
    """Return images after one of ``AUGMENTATIONS``; x is [N, C, H, W], and so is the result."""
    if "crop" in augmentation:
        x = _cropped(x)
    if "flip" in augmentation:
        mirrored = uniform_like(torch.empty(len(x))) < 0.5
        x = torch.where(mirrored[:, None, None, None].to(x.device), x.flip(3), x)
    return x


def _cropped(x: Tensor) -> Tensor:
    """Move each image by up to ``_PADDING`` pixels each way, zeros coming in: a random crop."""
    n, channels, height, width = x.shape
    top, left = (uniform_like(torch.empty(n, 2)) * (2 * _PADDING + 1)).long().T[..., None]
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    images, planes = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    where = tuple(each.to(x.device) for each in (images, planes, rows, columns))
    return pad(x, (_PADDING,) * 4)[where]
