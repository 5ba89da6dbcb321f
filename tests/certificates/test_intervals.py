"""Maps of intervals and balls against brute force over their points."""

import pytest
import torch
from torch.nn import functional as F

from robust_plugin.certificates.intervals import Ball, Interval


@pytest.fixture
def interval():
    centre = torch.randn(3, 4).double()
    return Interval(centre, torch.rand(3, 4).double())


def corners(interval):
    """All 16 corners of each point's box, shape [16, B, 4]."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
    return interval.centre + signs[:, None] * interval.radius


def test_a_linear_map_has_its_extremes_at_corners(interval):
    weight, bias = torch.randn(5, 4).double(), torch.randn(5).double()
    found = interval.linear(F.linear, weight, bias)
    values = F.linear(corners(interval), weight, bias)
    torch.testing.assert_close(found.lower, values.amin(0))
    torch.testing.assert_close(found.upper, values.amax(0))


def test_affine_rising_and_nonnegative_maps_have_theirs_at_corners(interval):
    scale = torch.tensor([2.0, -1.0, 0.0, 0.5]).double()
    averaged = interval.nonnegative(lambda v: v.mean(1, keepdim=True))
    for found, apply in (
        (interval.affine(scale, 1.0), lambda v: scale * v + 1.0),
        (interval.affine(-3.0, scale), lambda v: -3.0 * v + scale),
        (interval.rising(torch.tanh), torch.tanh),
        (averaged, lambda v: v.mean(-1, keepdim=True)),
    ):
        values = apply(corners(interval))
        torch.testing.assert_close(found.lower, values.amin(0))
        torch.testing.assert_close(found.upper, values.amax(0))


def test_between_and_the_ends_are_inverse(interval):
    again = Interval.between(interval.lower, interval.upper)
    torch.testing.assert_close(again.centre, interval.centre)
    torch.testing.assert_close(again.radius, interval.radius)


def test_a_ball_in_a_wide_box_has_the_dual_norm_and_in_a_narrow_one_the_box():
    x, eps = torch.rand(2, 4).double(), 0.3
    weight = torch.randn(5, 4).double()
    wide = Ball(x, torch.full_like(x[:1], eps), Interval(x, torch.full_like(x, 9.0)))
    found = wide.affine(2.0, 1.0).linear(F.linear, weight, None)
    torch.testing.assert_close(found.centre, (2 * x + 1) @ weight.T)
    torch.testing.assert_close(found.radius, (2 * eps * weight.norm(dim=1)).expand(2, -1))
    narrow = Ball(x, torch.full_like(x[:1], eps), Interval(x, torch.full_like(x, 1e-3)))
    torch.testing.assert_close(
        narrow.linear(F.linear, weight, None).radius,
        (1e-3 * weight.abs().sum(1)).expand(2, -1),
    )


def test_a_pruned_row_has_radius_zero_and_a_finite_gradient():
    x = torch.rand(2, 4)
    weight = torch.zeros(1, 4, requires_grad=True)
    ball = Ball(x, torch.full_like(x[:1], 0.3), Interval(x, torch.full_like(x, 0.3)))
    found = ball.linear(F.linear, weight, None)
    assert (found.radius == 0).all()
    found.lower.sum().backward()
    assert weight.grad.isfinite().all()
