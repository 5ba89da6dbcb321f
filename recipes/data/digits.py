"""The data set digits: scikit-learn's 1797 images of handwritten digits, 8x8 pixels."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from robust_plugin.recipes.data.splits import hold_out, stratified_split
from robust_plugin.recipes.data.train_val_test import Data, import_library

TEST_POINTS = 400  # of 1797; the same ones for every seed
_VALIDATION_POINTS = 200  # of the points that are not test points


def digits(validation: float | None, *, seed: int, test_points: int = TEST_POINTS) -> Data:
    """Load scikit-learn's digits, split into training, validation and test points.

    Args:
        validation: share of the training points to hold out, in (0, 1); None for 200 points.
        seed: seed of the choice of the validation points; the test points do not depend on it.
        test_points: number of points to hold out as test points.
    """
    bunch = import_library("sklearn.datasets").load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels are 0 to 16
    y = torch.tensor(bunch.target, dtype=torch.int64)
    rest, test = stratified_split(y.tolist(), test_points, seed=0)
    validation = _VALIDATION_POINTS / len(rest) if validation is None else validation
    kept, held_out = hold_out(y[rest].tolist(), validation, seed=seed)
    indices = ([rest[i] for i in kept], [rest[i] for i in held_out], test)
    parts = [TensorDataset(x[part], y[part]) for part in indices]
    return Data("digits", parts[0], parts[1], parts[2], classes=10, shape=(1, 8, 8))
