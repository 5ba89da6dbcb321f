"""Figures computed from certified radii."""

import pytest
import torch

from robust_plugin import Certificates


def test_accuracy_acr_and_table():
    found = Certificates(
        torch.tensor([1, -1, 2, 0]),
        torch.tensor([0.5, 0.0, 0.9, 0.25]),
        torch.tensor([1, 0, 2, 1]),
    )
    assert [found.accuracy(r) for r in (0.0, 0.5, 0.6, 1.0)] == [0.5, 0.5, 0.25, 0.0]
    assert found.acr == pytest.approx((0.5 + 0.9) / 4)
    table = found.table((0.0, 0.6))
    assert "0.600   25.0 [4.6, 69.9]  n=4" in table and "0.3500" in table
