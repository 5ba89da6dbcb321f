"""Attacks, reports and threat models in boxes other than [0, 1], some of them without bounds."""

import math

import pytest
import torch
from suspect_networks import HONEST, digits, trained  # noqa: E402
from torch import Tensor, nn

from robust_plugin import Report, ThreatModel, certified, evaluate, pgd
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.evaluation.obfuscated_gradients import obfuscation

X, Y = digits(60)
MEAN, STD = float(X.mean()), float(X.std())


class Standardised(nn.Module):
    """The network for inputs of mean 0 and standard deviation 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * STD + MEAN)


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_box_that_binds_nothing_changes_no_figure(name: str, norm: str) -> None:
    """From 10 standard deviations on it makes no difference where the box ends."""
    model = Standardised(trained(name, HONEST[name])).eval()
    x = (X - MEAN) / STD
    eps = (0.08 if norm == "Linf" else 0.4) / STD
    found = {}
    for width in (10.0, 1e7, math.inf):
        threat = ThreatModel(norm, eps, low=-width, high=width)
        attacks = [
            pgd(threat, steps=20, restarts=2, keep="best"),
            MinimumNorm(threat, targets=3, steps=20),
            AutoAttack(threat, version="screen", seed=0),
        ]
        torch.manual_seed(0)
        report = evaluate(model, [(x, Y)], attacks=attacks)
        assert Report.from_json(report.to_json()) == report
        found[width] = [100 * report.accuracy(row) for row in report.threats]
        assert report.findings == () and report.remarks == {}
    for width, each in found.items():
        assert each == pytest.approx(found[10.0], abs=2), width
    assert max(found[math.inf]) < 75 and min(found[math.inf]) > 10


def test_the_checks_for_obfuscation_take_a_box_without_bounds() -> None:
    model = Standardised(trained("cnn", HONEST["cnn"])).eval()
    x = (X - MEAN) / STD
    threat = ThreatModel("Linf", 0.05 / STD, low=-math.inf, high=math.inf)
    assert "no sign of obfuscated gradients" in obfuscation(model, x, Y, threat).verdict


@pytest.mark.parametrize(
    ("threat", "words", "unit"),
    [
        (ThreatModel("Linf", "8/255"), "Linf eps=8/255", "8/255"),
        (
            ThreatModel("Linf", "16/255", low=-1, high=1),
            "Linf eps=0.0627451 in [-1, 1]",
            "8/255",
        ),
        (ThreatModel("Linf", 8, low=0, high=255), "Linf eps=8 in [0, 255]", "8/255"),
        (ThreatModel("L2", 0.5, low=-1, high=1), "L2 eps=0.5 in [-1, 1]", "0.25"),
    ],
)
def test_a_threat_model_says_its_box(threat: ThreatModel, words: str, unit: str) -> None:
    """RobustBench's radius is of images in [0, 1]: eps / (high - low)."""
    assert str(threat) == words
    report = Report((0,), {"clean": (True,), "AutoAttack": (True,)}, {"AutoAttack": threat})
    assert report.robustbench()["eps"] == unit
    assert f"threat model: {words}" in str(report)


def test_robustbench_has_no_entry_without_bounds() -> None:
    threat = ThreatModel("Linf", 1, low=-math.inf, high=math.inf)
    report = Report((0,), {"clean": (True,), "AutoAttack": (True,)}, {"AutoAttack": threat})
    with pytest.raises(ValueError, match="lists radii of images scaled to"):
        report.robustbench()


def test_reports_in_two_boxes_are_not_compared() -> None:
    one, other = (
        Report((0,), {"clean": (True,), "PGD": (True,)}, {"PGD": threat})
        for threat in (ThreatModel("L2", 0.5, low=-1), ThreatModel("L2", 0.5, high=2))
    )
    for row in ("PGD", "worst case"):
        with pytest.raises(ValueError, match=r"is of .* in \[-1, 1\], .* in \[0, 2\]"):
            one.compare(other, row)
        assert one.compare(one, row).p == 1.0


@pytest.mark.parametrize("eps", [0.01, 0.0])
def test_a_batch_without_contrast_is_searched_in_its_whole_box(eps: float) -> None:
    """x > .701 in the mean: constant images of .5 have to move by .201, whatever is beside them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), torch.full((16,), 1.0)]))
        model[1].bias.copy_(torch.tensor([0.701 * 16, 0.0]))
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    found = MinimumNorm(ThreatModel("Linf", eps)).search(model, x, y)[1]
    assert found.tolist() == pytest.approx([0.201, 0.201], abs=2e-3)
    if eps:
        checks = obfuscation(model, x, y, ThreatModel("Linf", 0.001)).checks
        assert checks[0].name.startswith("accuracy falls to nothing") and checks[0].passed
    for bound in (math.inf, 1e6):
        wide = ThreatModel("Linf", eps, low=-bound, high=bound)
        found = MinimumNorm(wide).search(model, x, y)[1]
        assert found.tolist() == pytest.approx([0.201, 0.201], abs=2e-3)


def test_a_schedule_may_take_any_radius_of_grey_levels() -> None:
    threat = ThreatModel("Linf", 2, low=0, high=255)
    assert threat.with_radius(0.03).eps == 0.03 and threat.eps == 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = 255 * torch.rand(60, 1, 4, 4), torch.arange(60) % 3
    objective = certified(threat)
    objective.progress(1, 100)
    assert objective(model, x, y).isfinite()
    y = model(x).argmax(1)
    assert len(obfuscation(model, x, y, ThreatModel("L2", 16, low=0, high=255)).checks) == 5
