"""Points for the network of ``threshold.py``."""

import pytest
import torch


@pytest.fixture
def points():
    x = torch.rand(90, 4)
    y = (x[:, 0] > 0.5).long()
    y[::7] = 1 - y[::7]  # some are wrong clean
    return x, y
