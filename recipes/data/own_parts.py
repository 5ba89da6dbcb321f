"""One part of a user's data: tensors in memory, or a data set that is read point by point.

Both are checked when they are made, so that wrong shapes, ranges and labels are found before
training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robust_plugin.recipes.data.images import InMemory, View
from robust_plugin.recipes.data.pixels import GREY, in_bytes
from robust_plugin.recipes.runtime.progress import RunProgress
from robust_plugin.runtime.progress import reporting

PART = "a data set with a length whose points are pairs (x, y), or a pair (x, y) of tensors"
_PROBED = 16  # number of points of a data set with targets that are looked at before training
_MANY = 2000  # number of points from which on progress is shown
_RANGE = "uint8, or floats in [0, 1]"

Shape = tuple[int, int, int]


class OwnPart(Protocol):
    """One part of a user's data.

    Attributes:
        targets: label of each point.
        shape: (channels, height, width) of each point.
    """

    targets: list[int]
    shape: Shape

    def chosen(self, rows: Sequence[int], augmentation: str = "none") -> Dataset[Any]:
        """Return chosen points as a data set.

        Args:
            rows: indices of the points.
            augmentation: random changes of the points, one of ``images.AUGMENTATIONS``.
        """

    def content(self) -> bytes:
        """Return a digest of the content, as far as it is known without reading all points."""


class OwnTensors:
    """Points in memory.

    Args:
        x: points, uint8 or floats in [0, 1], shape [N, C, H, W].
        y: labels, integers, shape [N].
        name: name of the part, for messages.

    Raises:
        ValueError: for other shapes, types or values.
    """

    def __init__(self, x: Any, y: Any, name: str) -> None:
        try:
            x, y = torch.as_tensor(x).detach().cpu(), torch.as_tensor(y).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:  # of torch, which names no part
            raise ValueError(f"{name} cannot become tensors: {error}; legal: {PART}.") from error
        if x.dim() != 4 or len(x) == 0:
            hint = "; x[:, None] adds a channel" if x.dim() == 3 else ""
            raise ValueError(
                f"x of {name} has the shape {tuple(x.shape)}; legal: [N, C, H, W], at least one "
                f"point{hint}."
            )
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"y of {name} has the shape {tuple(y.shape)} for {len(x)} points; legal: [N], one "
                "integer for each point."
            )
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"y of {name} has the type {y.dtype}; legal: integers.")
        self._images = in_range(x, f"x of {name}")
        self._labels = y.long()
        self.targets = [as_label(label, f"a point of {name}") for label in self._labels.tolist()]
        self.shape: Shape = (x.shape[1], x.shape[2], x.shape[3])

    def chosen(self, rows: Sequence[int], augmentation: str = "none") -> Dataset[Any]:
        """Return chosen points as a data set in memory."""
        places = torch.tensor(rows)
        return InMemory(self._images[places], self._labels[places], augmentation)

    def content(self) -> bytes:
        """Return a digest of all points and labels."""
        digest = hashlib.sha256(str((self._images.shape, self._images.dtype)).encode())
        for each in (self._images, self._labels):
            digest.update(each.contiguous().numpy().tobytes())
        return digest.digest()


class OwnPoints(Dataset[Any]):
    """A data set of the user, whose points are checked and named in messages.

    Args:
        points: the data set.
        name: name of the part, for messages.

    Raises:
        ValueError: for points of other shapes, types or values than ``own_function.own_data`` says.
        TypeError: for points that are no pair (x, y).
    """

    def __init__(self, points: Any, name: str) -> None:
        self._points, self._name = points, name
        if len(points) == 0:
            raise ValueError(f"{name} has no points; legal: at least one.")
        first, _ = self[0]
        self.shape: Shape = tuple(first.shape)  # type: ignore[assignment]
        targets = getattr(points, "targets", None)
        known = targets is not None and len(targets) == len(points)
        few = range(0, len(points), max(1, len(points) // _PROBED))
        labels = self._looked_at(few if known else range(len(points)))
        if known:
            labels = [as_label(label, f"a point of {name}") for label in targets]  # type: ignore[union-attr]
        self.targets = labels

    def __len__(self) -> int:
        return len(self._points)

    def name_of(self, index: int) -> str:
        """Return the name of a point in messages."""
        return f"point {index} of {self._name}"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name = self.name_of(index)
        try:
            point = self._points[index]
        except Exception as error:  # the user's own code
            raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(point, tuple | list) or len(point) != 2:
            raise TypeError(f"{name} is a {type(point).__name__}; legal: a pair (x, y).")
        return as_input(point[0], name), as_label(point[1], name)

    def _looked_at(self, rows: Sequence[int]) -> list[int]:
        """Return the labels of points, after a look at each of them."""
        labels = []
        long = RunProgress({}) if len(rows) >= _MANY else False
        with reporting(long, f"looking at {self._name}", total=len(rows), unit="points") as show:
            for done, row in enumerate(rows, 1):
                x, y = self[row]
                if tuple(x.shape) != self.shape:
                    raise ValueError(
                        f"{self.name_of(row)} has the shape {tuple(x.shape)}, and the first one "
                        f"has {self.shape}; legal: one shape."
                    )
                labels.append(y)
                show(done)
        return labels

    def chosen(self, rows: Sequence[int], augmentation: str = "none") -> Dataset[Any]:
        """Return chosen points as a data set that reads them at each use."""
        shape = self.shape
        return View(self, rows, shape=shape, transform=_same, augmentation=augmentation)

    def content(self) -> bytes:
        """Return a digest of all labels."""
        return hashlib.sha256(str((self.shape, self.targets)).encode()).digest()


def in_range(x: Tensor, name: str) -> Tensor:
    """Return points as uint8 or float32 in [0, 1].

    Raises:
        ValueError: for another type, or values outside of [0, 1].
    """
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f"{name} has the type {x.dtype}; legal: {_RANGE}.")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}; legal: {_RANGE}. Do not normalise the "
            "data: a layer of the model does that, such as robust_plugin.Normalize."
        )
    return x.float()


def as_input(x: Any, name: str) -> Tensor:
    """Return one point as float32 in [0, 1], shape [C, H, W].

    Args:
        x: tensor, or image of Pillow.
        name: name of the point, for messages.

    Raises:
        ValueError: for another shape, type or range.
        TypeError: if it is neither a tensor nor an image.
    """
    if hasattr(x, "has_transparency_data"):  # an image of Pillow
        pixels = np.asarray(in_bytes(x, name, mode="L" if x.mode in GREY else "RGB"))
        x = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} has an x of the type {type(x).__name__}; legal: a tensor of shape [C, H, W], "
            "or an image of Pillow."
        )
    if x.dim() != 3:
        raise ValueError(f"{name} has the shape {tuple(x.shape)}; legal: [C, H, W].")
    point = in_range(x, name)
    return point.float() / 255 if point.dtype == torch.uint8 else point


def as_label(y: Any, name: str) -> int:
    """Return a label as an int, 0 or more.

    Args:
        y: int, or a tensor or array of one integer.
        name: name of the point, for messages.

    Raises:
        ValueError: for anything else.
    """
    number = y.numel() if isinstance(y, Tensor) else getattr(y, "size", 0)
    value = y.item() if number == 1 else y
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} has the label {y!r}; legal: an integer from 0 on.")
    return value


def _same(x: Tensor) -> Tensor:
    return x
