"""Tensors and data sets of the user: what is legal in them, and what their points become."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from robust_plugin.recipes.data.own_parts import OwnPoints, OwnTensors, as_input, as_label

X, Y = torch.rand(6, 2, 4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


class Counted(list[Any]):
    """A data set that counts how often each point is read."""

    def __init__(self, points: list[Any]) -> None:
        super().__init__(points)
        self.read: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], Y, r"shape \(6, 4, 5\); legal: \[N, C, H, W\].*x\[:, None\] adds a channel"),
        (X[:0], Y[:0], "at least one point"),
        (X, Y[:5], r"y of p has the shape \(5,\) for 6 points"),
        (X, Y.float(), "y of p has the type torch.float32; legal: integers"),
        (X, Y - 1, "a point of p has the label -1; legal: an integer from 0 on"),
        (X.long(), Y, "x of p has the type torch.int64; legal: uint8, or floats in"),
        (255 * X, Y, "x of p has values from .*; legal: uint8, or floats in .0, 1.. Do not normal"),
        (X - 0.5, Y, "x of p has values from -0.49"),
        (X * float("nan"), Y, "x of p has values from nan"),
        (np.array([["a"]]), Y, "p cannot become tensors"),
    ],
)
def test_illegal_tensors_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OwnTensors(x, y, "p")


def test_legal_tensors_are_kept() -> None:
    for x in (X, X.double(), X.half(), (255 * X).byte()):
        part = OwnTensors(x, Y, "p")
        chosen: Any = part.chosen([4, 1])
        assert part.targets == Y.tolist() and part.shape == (2, 4, 5)
        expected = x[4].float() / (255 if x.dtype == torch.uint8 else 1)
        assert torch.equal(chosen[0][0], expected) and chosen[0][1] == 1 and len(chosen) == 2
    assert OwnTensors(X, Y, "p").content() != OwnTensors(X.flip(0), Y, "p").content()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (1, "point 3 of p is a int; legal: a pair"),
        ((X[0], Y[0], 1), "point 3 of p is a tuple"),
        ((X[0, 0], 1), r"point 3 of p has the shape \(4, 5\); legal: \[C, H, W\]"),
        ((X[0, :1], 1), r"point 3 of p has the shape \(1, 4, 5\), and the first one has \(2, 4, 5"),
        ((X[0], 1.0), "point 3 of p has the label 1.0; legal: an integer"),
        ((X[0], True), "point 3 of p has the label True"),
        ((2 * X[0], 1), "point 3 of p has values from .* to 1.9"),
        (("a.png", 1), "point 3 of p has an x of the type str; legal: a tensor"),
    ],
)
def test_an_illegal_point_is_found_before_training(point: Any, message: str) -> None:
    points: list[Any] = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
    points[3] = point
    with pytest.raises((ValueError, TypeError), match=message):
        OwnPoints(points, "p")


def test_a_point_that_fails_is_named() -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            if index == 5:
                raise KeyError("a file")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="point 5 of p failed: KeyError: 'a file'"):
        OwnPoints(Broken(X, Y), "p")
    with pytest.raises(ValueError, match="p has no points"):
        OwnPoints([], "p")


def test_targets_save_reading_all_points() -> None:
    points = Counted([(X[i % 6], int(Y[i % 6])) for i in range(100)])
    assert OwnPoints(points, "p").targets == [int(Y[i % 6]) for i in range(100)]
    assert set(points.read) == set(range(100))
    points.read.clear()
    points.targets = [int(Y[i % 6]) for i in range(100)]  # type: ignore[attr-defined]
    assert OwnPoints(points, "p").targets == points.targets  # type: ignore[attr-defined]
    assert len(set(points.read)) < 20


def test_images_of_pillow_become_tensors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    colour = as_input(Image.fromarray(pixels), "p")
    assert np.array_equal(colour.numpy(), pixels.transpose(2, 0, 1) / np.float32(255))
    grey = as_input(Image.fromarray(pixels[..., 0]), "p")
    assert grey.shape == (1, 4, 5) and np.array_equal(grey[0], pixels[..., 0] / np.float32(255))
    with pytest.raises(ValueError, match="p .mode RGBA. has transparent pixels"):
        as_input(Image.new("RGBA", (2, 2)), "p")


@pytest.mark.parametrize("y", [3, torch.tensor(3), torch.tensor([3]), np.int64(3)])
def test_labels_may_be_any_kind_of_integer(y: Any) -> None:
    assert as_label(y, "p") == 3 and type(as_label(y, "p")) is int
