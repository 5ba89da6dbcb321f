"""scikit-learn's digits: all points once, in three parts."""

from collections import Counter

import numpy as np
import torch
from sklearn.datasets import load_digits
from small_images import labels, points

from robust_plugin.recipes.data.datasets import load_data


def test_digits_are_all_points_once_in_three_stratified_parts() -> None:
    data = load_data("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1197, 200, 400]
    bunch = load_digits()
    all_points = Counter(
        (np.float32(image / 16).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    parts = points(data.train) + points(data.validation) + points(data.test)
    assert Counter(parts) == all_points
    share = Counter(bunch.target.tolist())
    for part in (data.train, data.validation, data.test):
        for label, count in labels(part).items():
            assert (
                abs(count - share[label] * len(part) / 1797) < 2
            )  # two roundings, one after other


def test_digits_say_what_they_are() -> None:
    data = load_data("digits")
    x, y = data.train[0]
    assert (data.name, data.classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert x.shape == data.shape and x.dtype == torch.float32 and y.dtype == torch.int64
    stacked = torch.stack([data.train[i][0] for i in range(len(data.train))])
    assert stacked.min() == 0 and stacked.max() == 1


def test_the_test_points_of_digits_depend_on_no_seed() -> None:
    torch.manual_seed(1)
    one = load_data("digits", seed=0)
    torch.manual_seed(2)
    other = load_data("digits", seed=1)
    assert points(one.test) == points(other.test)
    assert points(one.validation) != points(other.validation)
    assert points(load_data("digits", seed=1).validation) == points(other.validation)
