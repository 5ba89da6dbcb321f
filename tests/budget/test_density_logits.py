"""Rate logits: densities and back, and steps of limited size."""

import math

import pytest
import torch

from robust_plugin.budget.density_logits import (
    densities,
    limited,
    rate_logit,
    rate_logits,
    set_logits,
)
from robust_plugin.masks.group_mask import GroupMask


def test_rate_logit_inverts_and_stays_finite():
    for k_min in (0.001, 0.01, 0.1):
        for density in (k_min * 1.5, 0.2, 0.5, 0.99):
            r = rate_logit(density, k_min)
            assert k_min + (1 - k_min) / (1 + math.exp(-r)) == pytest.approx(density)
        for density in (k_min, k_min / 2, 1.0):  # the official clamp gives inf or NaN here
            assert math.isfinite(rate_logit(density, k_min))


def test_masks_give_back_the_logits_and_densities_that_are_set():
    masks = [GroupMask(torch.randn(9), 1, k_min=0.1, rate=0.0) for _ in range(3)]
    assert densities(masks) == pytest.approx([0.55] * 3)
    wanted = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    set_logits(masks, wanted)
    assert torch.equal(rate_logits(masks), wanted)
    for k, r in zip(densities(masks), wanted.tolist(), strict=True):
        assert rate_logit(k, 0.1) == pytest.approx(r)


def test_a_long_step_is_shortened_and_keeps_its_direction():
    previous = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    change = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64)
    assert torch.equal(limited(previous + change, previous, 1.0), previous + change)
    assert torch.equal(limited(previous, previous, 1.0), previous)
    torch.testing.assert_close(limited(previous + change, previous, 0.1), previous + change / 4)
