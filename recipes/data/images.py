"""Data sets of images that are read from disk at each use, or kept in memory.

To read, decode and augment small images one by one takes more time than to train a small network on
them. So images that fit in memory are decoded once, kept as bytes and augmented in whole batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, TensorDataset

from robust_plugin.recipes.data.batches import generator_of
from robust_plugin.runtime.random import Share, drawing, seed_of, uniform_like

LIMIT = 2**29  # bytes per process; CIFAR takes 184 MB


_CPU = torch.device("cpu")


class View(Dataset[tuple[Tensor, int]]):
    """Chosen points of a data set of images; each image is read and converted anew at each use.

    A point is (x, y): x a float tensor [C, H, W], y its label.

    Args:
        images: data set of (image, label); if it has a method ``name_of``, this names an image, by
            its index, in error messages.
        indices: indices of the chosen points in ``images``.
        shape: (C, H, W) that each tensor must have.
        transform: function from an image to a float tensor [C, H, W] in [0, 1].
        augmentation: one of ``AUGMENTATIONS``, applied to the tensor.
    """

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
        name_of = getattr(self.images, "name_of", "image {}".format)
        name = name_of(number)
        try:
            image, label = self.images[number]
        except FileNotFoundError:  # its message names the file
            raise
        except (OSError, SyntaxError) as error:  # errors of PIL, which do not name the file
            raise ValueError(f"{name} cannot be read: {error}") from error
        x = self.transform(image)
        if tuple(x.shape) != self.shape:  # checked here, where the file is known
            raise ValueError(
                f"{name} has the shape {tuple(x.shape)}, and the first one has {self.shape}; all "
                "must have the same shape."
            )
        return augmented(x[None], self.augmentation)[0], int(label)


@runtime_checkable
class Batched(Protocol):
    """A data set that returns whole batches at once."""

    def batch(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return images, augmented, and labels on a device.

        Args:
            rows: indices of the points, shape [B].
            device: device of the result.

        Returns:
            tuple: images, float32 in [0, 1], shape [B, C, H, W], and labels, shape [B].
        """


class Resident(Dataset[tuple[Tensor, int]]):
    """A data set of images that stay in memory from their first use on.

    A point is (x, y): x float32 [C, H, W] in [0, 1], y its label. When batches are made on a GPU, a
    copy of all images is kept there, so that only the indices of the points are sent to it.

    Args:
        points: data set of pairs (image, label); an image is float [C, H, W], and its values are
            multiples of 1/255.
        augmentation: random changes of the images, one of ``AUGMENTATIONS``.
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
    def _stored(self) -> tuple[Tensor, Tensor]:
        """All images as bytes, shape [N, C, H, W], and all labels, shape [N]."""
        first, _ = self.points[0]
        images = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        labels = []
        for row in range(len(self)):
            x, y = cast(tuple[Tensor, int], self.points[row])
            images[row] = (255 * x).round().byte()
            labels.append(y)
        return images, torch.tensor(labels)

    def _stored_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device.type == "cpu":
            return self._stored
        if self._copy is None or self._copy[0].device != device:
            images, labels = self._stored
            self._copy = images.to(device), labels.to(device)
        return self._copy

    def plain(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return images and labels without augmentation, on a device.

        Args:
            rows: indices of the points, shape [B].
            device: device of the result.

        Returns:
            tuple: images, float32 in [0, 1], shape [B, C, H, W], and labels, shape [B].
        """
        images, labels = self._stored_on(device)
        rows = rows.to(device)
        return in_unit(images[rows]), labels[rows]

    def batch(self, rows: Tensor, device: torch.device = _CPU) -> tuple[Tensor, Tensor]:
        """Return images and labels on a device, where the images are also augmented.

        Args:
            rows: indices of the points, shape [B].
            device: device of the result.

        Returns:
            tuple: images, float32 in [0, 1], shape [B, C, H, W], and labels, shape [B].
        """
        x, y = self.plain(rows, device)
        return augmented(x, self.augmentation), y


class InMemory(Resident):
    """A data set of images that are already in memory, as bytes or as floats in [0, 1].

    Args:
        images: uint8 or float32, shape [N, C, H, W].
        labels: integers, shape [N].
        augmentation: random changes of the images, one of ``AUGMENTATIONS``.
    """

    def __init__(self, images: Tensor, labels: Tensor, augmentation: str = "none") -> None:
        super().__init__(TensorDataset(images, labels), augmentation)
        self._tensors = images, labels

    @property
    def _stored(self) -> tuple[Tensor, Tensor]:
        return self._tensors


def in_unit(images: Tensor) -> Tensor:
    """Return images of bytes k as float32 k/255, with exactly the same values on every device.

    Images of floats are returned as they are.
    """
    if images.is_floating_point():
        return images
    # With a plain 255, a GPU would multiply by the rounded 1/255, which gives other numbers.
    return images.float() / torch.full((), 255.0, device=images.device)


class ResidentLoader:
    """A loader for images in memory; it is iterated like a ``DataLoader``.

    Args:
        dataset: data set whose ``batch`` method returns the images and labels of a list of
            indices, augmented.
        batches: indices of the points of each batch, in all processes together.
        rows: for each batch, the positions in it of the points that this process computes.
        seed: seed of the run. The random numbers of the augmentation depend on (seed, epoch) and
            are drawn for the whole batch, so they do not depend on ``rows``.
        epoch: index of the epoch, from 0.
        device: device that the batches are made on.
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


_PADDING = 4  # pixels added on each side before a crop, as in CIFAR recipes


def augmented(x: Tensor, augmentation: str) -> Tensor:
    """Return images after a random augmentation.

    Args:
        x: images, shape [N, C, H, W].
        augmentation: one of ``AUGMENTATIONS``.

    Returns:
        Tensor: the changed images, shape [N, C, H, W].
    """
    if "crop" in augmentation:
        x = _cropped(x)
    if "flip" in augmentation:
        mirrored = uniform_like(torch.empty(len(x))) < 0.5
        x = torch.where(mirrored[:, None, None, None].to(x.device), x.flip(3), x)
    return x


def _cropped(x: Tensor) -> Tensor:
    """Move each image [C, H, W] by a random number of pixels, and fill the border with zeros.

    The number is up to ``_PADDING`` in each direction.
    """
    n, channels, height, width = x.shape
    top, left = (uniform_like(torch.empty(n, 2)) * (2 * _PADDING + 1)).long().T[..., None]
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    images, planes = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    where = tuple(each.to(x.device) for each in (images, planes, rows, columns))
    return pad(x, (_PADDING,) * 4)[where]
