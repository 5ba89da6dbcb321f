"""A small image folder, and what tests look at in data sets and batches."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def points(dataset: Any) -> list[tuple[bytes, int]]:
    return [(x.numpy().tobytes(), int(y)) for x, y in (dataset[i] for i in range(len(dataset)))]


def labels(dataset: Any) -> Counter[int]:
    return Counter(int(dataset[i][1]) for i in range(len(dataset)))


def first_batches(data: Iterable[Any]) -> list[torch.Tensor]:
    return [batch[0] for batch in data]


def write_images(
    root: Path, *, classes: Iterable[str] = ("cat", "dog"), per_class: int = 8, size: int = 12
) -> None:
    """Images with a bright left half, no two alike."""
    value = 0
    for part in ("train", "test"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = np.zeros((size, size, 3), np.uint8)
                pixels[:, : size // 2] = 130 + value
                value += 1
                Image.fromarray(pixels).save(folder / f"{i}.png")
