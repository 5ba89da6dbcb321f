"""FAB against the library's own loop, and its projection against sorting and brute force."""

import pytest
import torch
from library_runs import BALLS, library
from pyautoattack.fab_projections import projection_l2, projection_linf

from robust_plugin import ThreatModel
from robust_plugin.attacks.fab import FabSettings, fab, project_on_hyperplane
from robust_plugin.attacks.survivors import Survivors


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


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_fab_finds_the_distances_of_the_library(norm, eps, setting):
    model, x, y = setting
    threat = ThreatModel(norm, eps)
    settings = FabSettings()
    order = model(x).sort(dim=1).indices
    for place in (2, 3):
        points = Survivors(model, x, y, ThreatModel(norm, 0.0))  # nobody leaves the run
        found, nearest = fab(points, order[:, -place], settings)
        torch.testing.assert_close(threat.norms(nearest - x), found)
        assert bool((model(nearest).argmax(1) != y).all())
        of = library(model, norm, eps).fab
        of.target_class = place
        x_adv = of.attack_single_run(x, y, is_targeted=True)
        expected = threat.norms(x_adv - x)
        close = (found - expected).abs() <= 1e-3 * expected
        assert float(close.float().mean()) > 0.9 and bool((expected > 0).all())


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("random_start", [False, True])
def test_untargeted_fab_finds_the_distances_of_the_library(norm, eps, random_start, setting):
    model, x, y = setting
    points = Survivors(model, x, y, ThreatModel(norm, eps))
    points.keep = lambda *_: None
    torch.manual_seed(7)
    found, _ = fab(points, None, FabSettings(steps=20), random_start=random_start)
    of = library(model, norm, eps).fab
    of.n_iter = 20
    torch.manual_seed(7)
    x_adv = of.attack_single_run(x, y, use_rand_start=random_start)
    expected = points.threat.norms(x_adv - x)
    close = (found - expected).abs() <= 1e-3 * expected
    assert float(close.float().mean()) > 0.9 and bool((expected > 0).all())
