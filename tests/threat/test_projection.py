"""The projection onto the L1 ball, against bisection."""

import torch

from robust_plugin import ThreatModel
from robust_plugin.threat.projection import project_on_l1_ball


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
