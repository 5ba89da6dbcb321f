"""The security curve of a run: against closed forms and PGD by hand, and where it is stored."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from robust_plugin.recipes.evaluate import before_after, security_curve
from robust_plugin.recipes.evaluate.end_of_run import evaluate_run
from robust_plugin.recipes.evaluate.run_facts import run_facts
from robust_plugin.recipes.evaluate.security_curve import (
    CURVE_TASK,
    measured_curve,
    points_of_curve,
    radii_of_curve,
)
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.pages.run_page import run_page
from robust_plugin.recipes.pages.security_curve import FACTORS, CurveUnderPGD
from robust_plugin.recipes.papers.registry import finished_run
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.progress import Progress
from robust_plugin.runtime.random import seed_of
from robust_plugin.threat.model import ThreatModel

TITLE = "<h2>Robust accuracy against the radius</h2>"


def stored(folder: Path) -> CurveUnderPGD:
    found = CurveUnderPGD.from_plain(
        json.loads((folder / "report.json").read_text())["security_curve"]
    )
    assert found is not None
    return found


def with_curve(run: Run, points: int) -> Run:
    evaluation = replace(run.config.evaluation, curve=points)
    run.config = replace(run.config, evaluation=evaluation)
    return run


class Linear(nn.Module):
    """Class 1 if the inputs, weighted, exceed a threshold; two more classes never win."""

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.weight, self.threshold = nn.Parameter(weight), threshold

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight - self.threshold
        low = torch.full_like(margin, -100.0)
        return torch.stack([-margin, margin, low, low], 1)


def test_the_curve_of_a_linear_network_is_the_closed_form(run: Path) -> None:
    """The worst input of a linear network moves each value by eps against its weight, in [0, 1]."""
    finished = with_curve(finished_run(run), 60)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 8 * 8, generator=generator)
    x = torch.rand(70, 3, 8, 8, generator=generator)
    scores = x.flatten(1) @ weight
    threshold = float(scores.median())
    y = (scores > threshold).long()
    y[::9] = 1 - y[::9]  # these are wrong without an attack
    finished.data = replace(finished.data, test=TensorDataset(x, y))
    found = measured_curve(finished, Linear(weight, threshold).eval())
    assert found is not None and len(found.curve.distances) == 60
    way = torch.where(y == 1, -1.0, 1.0)[:, None] * weight.sign()
    shares = []
    for factor in FACTORS:
        worst = (x.flatten(1) + factor * finished.threat.eps * way).clamp(0, 1)
        right = ((worst @ weight > threshold).long() == y)[:60]
        shares.append(float(right.double().mean()))
    assert found.line[0][0] == shares[0] == pytest.approx(53 / 60)
    assert [mean for mean, _, _ in found.line] == shares and shares[1] < shares[0]
    assert found.finding("it") == ""


def pgd_by_hand(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Whether each point is right at every iterate of PGD with steps of 2.5 eps / steps."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    right = torch.ones(len(x), dtype=torch.bool)
    for _ in range(steps + 1):
        x_adv.requires_grad_(True)
        logits = model(x_adv)
        right &= logits.argmax(1) == y
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x_adv)
        x_adv = x_adv.detach() + 2.5 * eps / steps * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return right


def test_the_stored_curve_is_pgd_by_hand_on_the_same_points(run: Path) -> None:
    """At 0 it is the clean accuracy; at 1 eps, what PGD leaves there and at 1/2 eps."""
    finished = finished_run(run)
    model = finished.fresh_model()
    load_weights(model, run / "model.safetensors")
    model.eval()
    points = [finished.data.test[i] for i in range(24)]
    x, y = torch.stack([x for x, _ in points]), torch.tensor([int(y) for _, y in points])
    found, report = stored(run), json.loads((run / "report.json").read_text())["report"]
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    assert found.line[0][0] == float(clean.double().mean())
    assert "".join("01"[d > 0] for d in found.curve.distances) == report["flags"]["clean"][:24]
    stands = clean.clone()
    torch.manual_seed(seed_of(finished.config.seed, "evaluation"))
    for factor, (accuracy, low, high) in zip(FACTORS[1:], found.line[1:], strict=True):
        by_hand = pgd_by_hand(model, x[clean], y[clean], factor * found.eps, 3)
        stands[clean.nonzero().flatten()[~by_hand]] = False
        assert accuracy == float(stands.double().mean()) and low <= accuracy <= high
    assert 0 < found.line[2][0] < found.line[0][0]  # neither nothing nor everything
    assert found.attack == "PGD-3" and found.eps == 20 / 255 and found.largest == 1.0


def test_the_same_settings_give_the_same_curve_and_progress_is_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = finished_run(run)
    model = finished.fresh_model()
    load_weights(model, run / "model.safetensors")
    seen: list[Progress] = []
    monkeypatch.setattr(finished, "progress", seen.append)
    torch.manual_seed(7)
    assert measured_curve(finished, model.eval(), name="dense network: ") == stored(run)
    assert {now.task for now in seen} == {f"dense network: {CURVE_TASK}"}
    assert seen[-1].done == seen[-1].total


def test_the_largest_radius_is_the_whole_box(run: Path) -> None:
    finished = finished_run(run)
    assert radii_of_curve(finished)[-1] == 1.0 and len(radii_of_curve(finished)) == 5
    finished.threat = ThreatModel("L2", 0.5)
    assert radii_of_curve(finished) == (0.25, 0.5, 1.0, 2.0, pytest.approx(math.sqrt(3 * 8 * 8)))
    finished.threat = ThreatModel("Linf", 0.3)  # 4 eps are more than the box
    assert radii_of_curve(finished) == (0.15, 0.3, 0.6, 1.2)


def test_no_points_or_no_radius_are_no_curve(run: Path) -> None:
    finished = with_curve(finished_run(run), 0)
    assert measured_curve(finished, finished.fresh_model().eval()) is None
    assert points_of_curve(with_curve(finished, 900)) == 32
    finished.threat = ThreatModel("Linf", 0)
    assert points_of_curve(finished) == 0


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("measured")


def test_a_report_without_a_curve_is_kept_and_gets_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a run of an older version: its page has no curve, the same command measures it."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    whole = json.loads((run / "report.json").read_text())
    assert "curve" not in whole["identity"]["evaluation"]
    for name, key in (("report.json", "security_curve"), ("before_after.json", "curve")):
        content = json.loads((old / name).read_text())
        del content[key]
        (old / name).write_text(json.dumps(content))
    finished = finished_run(old)
    with monkeypatch.context() as patch:  # the page alone measures no curve
        patch.setattr(before_after, "measured_curve", never)
        facts = run_facts(finished, method="hydra", command="")
        assert facts.curves == {} and TITLE not in run_page(facts)
    finished.identity = dict(whole["identity"])
    del finished.identity["evaluation"]  # what ``evaluate_run`` adds
    model = finished.fresh_model()
    load_weights(model, old / "model.safetensors")
    evaluate_run(finished, model)
    assert json.loads((old / "report.json").read_text()) == whole
    # now the page has the dense network's curve too, which is measured once
    facts = run_facts(finished, method="hydra", command="")
    assert list(facts.curves) == ["dense", "hydra"] and facts.curves["hydra"] == stored(run)
    assert facts.curves["dense"] != facts.curves["hydra"]
    assert facts.dense is not None
    assert facts.curves["dense"].line[0][0] == sum(facts.dense.report.flags["clean"][:24]) / 24
    html = run_page(facts)
    assert TITLE in html
    for module in (before_after, security_curve):
        monkeypatch.setattr(module, "measure", never)
    assert run_page(run_facts(finished, method="hydra", command="")) == html
    evaluate_run(finished, model)
    # turned off, it is neither measured nor shown
    assert run_facts(with_curve(finished, 0), method="hydra", command="").curves == {}
    evaluate_run(finished, model)
