"""Distances against the closed form of a linear classifier, and the curve they give."""

import math

import pytest
import torch
from torch import nn

from robust_plugin import MinimumNorm, Report, SecurityCurve, ThreatModel, evaluate, pgd
from robust_plugin.stats import wilson_interval


@pytest.fixture
def linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    # In the middle of the box, so that the box never binds.
    x = 0.5 + 0.05 * torch.randn(40, 3, 2, 2)
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        y[:4] = (y[:4] + 1) % 5  # wrong clean
        w = model[1].weight
        gaps = logits[torch.arange(40), y][:, None] - logits
        others = torch.arange(5)[None] != y[:, None]
        dual = {"Linf": 1, "L2": 2}
        exact = {
            norm: torch.where(
                others, gaps / (w[y][:, None] - w[None]).norm(p=p, dim=2), torch.inf
            ).amin(1)
            for norm, p in dual.items()
        }
    return model, x, y, exact


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_distances_of_a_linear_classifier_are_exact(norm, linear):
    model, x, y, exact = linear
    eps = float(exact[norm][4:].median())
    attack = MinimumNorm(ThreatModel(norm, eps), steps=40)
    x_adv, found = attack.search(model, x, y)
    assert found[:4].tolist() == [0.0] * 4
    # FAB steps 5 % beyond the boundary and comes back by tenths; never below the truth.
    assert bool((found[4:] >= exact[norm][4:] * (1 - 1e-4)).all())
    assert bool((found[4:] <= exact[norm][4:] * 1.06).all())
    inside = (found <= eps) & (found > 0)
    with torch.no_grad():
        wrong = model(x_adv).argmax(1) != y
    assert torch.equal(wrong[4:], inside[4:]) and 0 < int(inside.sum()) < 36
    assert torch.equal(x_adv[~inside], x[~inside])
    assert torch.equal(attack(model, x, y), x_adv)


def test_another_box_measures_in_input_units(linear):
    model, x, y, _ = linear
    wide = nn.Sequential(Halved(), model)
    near = MinimumNorm(ThreatModel("Linf", 0.1)).search(model, x, y)[1]
    far = MinimumNorm(ThreatModel("Linf", 0.2, low=-1, high=1)).search(wide, 2 * x - 1, y)[1]
    torch.testing.assert_close(far, 2 * near, rtol=1e-3, atol=1e-5)


class Halved(nn.Module):
    def forward(self, x):
        return (x + 1) / 2


def test_the_report_has_the_curve_of_all_attacks(linear):
    model, x, y, exact = linear
    eps = float(exact["Linf"][4:].median())
    threat = ThreatModel("Linf", eps)
    search = MinimumNorm(threat)
    report = evaluate(model, [(x, y)], attacks=[pgd(threat, steps=20, keep="best"), search])
    curve = report.curve
    assert curve is not None and curve.norm == "Linf"
    assert curve.accuracy(0) == report.accuracy()
    assert curve.accuracy(eps) == report.accuracy("worst case")
    found = search.search(model, x, y)[1].tolist()
    assert all(a <= b + 1e-6 for a, b in zip(curve.distances, found, strict=True))
    # What PGD alone finds is a curve of one radius only, and none is offered.
    assert evaluate(model, [(x, y)], attacks=[pgd(threat)]).curve is None
    again = Report.from_json(report.to_json())
    assert again == report and again.curve == curve


@pytest.mark.parametrize("eps", ["8/255", "20/255", 0.1])
def test_the_curve_has_the_worst_case_at_every_radius(eps):
    """x + eps - x is more than eps in float32, at many pixels."""
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    y, threat = model(x).argmax(1), ThreatModel("Linf", eps)
    search = MinimumNorm(threat, targets=1, steps=1)  # PGD has to find the rest
    report = evaluate(model, [(x, y)], attacks=[pgd(threat, steps=20, keep="best"), search])
    assert 0 < report.accuracy("worst case") < 1
    assert report.curve is not None
    assert report.curve.accuracy(eps) == report.accuracy("worst case")


def test_curve_by_hand():
    curve = SecurityCurve("Linf", (0.0, 0.01, 0.01, 0.05, math.inf))
    assert [curve.accuracy(e) for e in (0, 0.009, 0.01, "8/255", 0.05, 1)] == [
        0.8, 0.8, 0.4, 0.4, 0.2, 0.2
    ]  # fmt: skip
    assert curve.interval("8/255") == wilson_interval(2, 5)
    assert curve.median == 0.01
    assert curve.steps()[-1] == (0.05, pytest.approx(0.2))
    lines = curve.table(["8/255", 0.05]).splitlines()
    assert lines[0] == "robust accuracy against eps, Linf, n=5"
    assert lines[1].split()[:4] == ["8/255", "=", "0.031373", "40.0"]


def test_bad_input(linear):
    model, x, y, _ = linear
    with pytest.raises(ValueError, match="norm is L1"):
        MinimumNorm(ThreatModel("L1", 1))
    with pytest.raises(ValueError, match="targets=0"):
        MinimumNorm(ThreatModel("L2", 1), targets=0)
    with pytest.raises(ValueError, match="labels are"):
        MinimumNorm(ThreatModel("L2", 1))(model, x, y + 7)
