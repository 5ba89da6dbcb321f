"""A small network with images, and double precision, for comparisons with the library."""

import logging

import pytest
import torch
from library_runs import POINTS, Spied


@pytest.fixture
def double():
    """Double precision, for the library's own zeros and noise too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def setting():
    logging.getLogger("auto-attack").disabled = True
    model = Spied()
    x = torch.rand(POINTS, 3, 12, 12)
    x[:, :, ::5], x[:, :, ::7] = 0, 1
    return model, x, model(x).argmax(1)
