"""Projections against brute force and against the library whose sort they save."""

import pytest
import torch
from pyautoattack.fab_projections import projection_l2, projection_linf

from robust_plugin import ThreatModel
from robust_plugin.attacks.fab import project_on_hyperplane
from robust_plugin.threat.projection import project_on_l1_ball


@pytest.mark.parametrize(("norm", "theirs"), [("Linf", projection_linf), ("L2", projection_l2)])
@pytest.mark.parametrize("n", [3, 64, 3072])
def test_hyperplane_equals_the_sorted_solution(norm, theirs, n):
    t, w = torch.rand(32, n), torch.randn(32, n)
    t[:, ::7], t[:, ::11], w[:, ::13] = 0, 1, 0
    b = (w * t).sum(1) + torch.randn(32) * torch.tensor([0.01, 0.5, 5.0, 200.0]).repeat(8)
    ours, expected = project_on_hyperplane(t, w, b, norm), theirs(t, w, b)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    inside = t + ours
    assert float(inside.min()) >= -1e-6 and float(inside.max()) <= 1 + 1e-6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_hyperplane_is_reached_where_it_can_be_or_the_nearest_corner(norm):
    t, w = torch.rand(200, 10).double(), torch.randn(200, 10).double()
    inner = torch.rand(200, 10).double()
    d = project_on_hyperplane(t, w, (w * inner).sum(1), norm)
    torch.testing.assert_close((w * (t + d)).sum(1), (w * inner).sum(1), rtol=1e-6, atol=1e-6)
    # No random point of the hyperplane and the box is nearer.
    size = d.abs().amax(1) if norm == "Linf" else d.norm(dim=1)
    other = inner - t
    assert bool(
        (size <= (other.abs().amax(1) if norm == "Linf" else other.norm(dim=1)) + 1e-9).all()
    )
    beyond = project_on_hyperplane(t, w, w.clamp(min=0).sum(1) + 1, norm)
    torch.testing.assert_close(t + beyond, (w > 0).double())


def test_zero_distance_and_zero_normals():
    t, w = torch.rand(2, 5), torch.randn(2, 5)
    assert project_on_hyperplane(t, w, (w * t).sum(1), "Linf").abs().max() < 1e-6
    assert project_on_hyperplane(t, torch.zeros(2, 5), torch.ones(2), "L2").abs().max() == 0


def test_l1_ball_equals_bisection_on_the_shrinkage():
    delta = torch.randn(50, 20).double()
    found = project_on_l1_ball(delta, 2.0)
    low, high = torch.zeros(50, 1).double(), delta.abs().amax(1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        over = (delta.abs() - middle).clamp(min=0).sum(1, keepdim=True) > 2
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(found, delta.sign() * (delta.abs() - high).clamp(min=0))
    inside = 0.01 * torch.randn(3, 4)
    assert torch.equal(project_on_l1_ball(inside, 2.0), inside)
    assert float(project_on_l1_ball(delta, 0.0).abs().max()) == 0


def test_the_l1_threat_model_projects_ball_then_box():
    threat = ThreatModel("L1", 1.0)
    x, noise = torch.rand(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    found = threat.project(x + noise, x)
    expected = (x + project_on_l1_ball(noise.flatten(1), 1.0).view_as(x)).clamp(0, 1)
    torch.testing.assert_close(found, expected)
    assert float(threat.norms(found - x).max()) <= 1 + 1e-5
    torch.testing.assert_close(threat.norms(noise), noise.abs().sum((1, 2, 3)))
