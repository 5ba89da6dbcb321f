"""Expected times of an evaluation: the passes of attacks, and what a few points say."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from robust_plugin.adapters.autoattack.component import Component
from robust_plugin.recipes.evaluate.expected_time import (
    Sample,
    expected_seconds,
    expected_times,
    sampled,
)
from robust_plugin.recipes.evaluate.plan import Plan
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import ThreatModel

THREAT = ThreatModel("Linf", eps=0.1)
SAMPLE = Sample(64, gradient=0.01, forward=0.002, correct=48, robust=32, proofs=(1.0, 3.0))


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_the_passes_of_autoattack_are_those_of_the_library(version: str) -> None:
    pytest.importorskip("pyautoattack")
    made = Component("apgd-ce", version, THREAT, torch.device("cpu")).original
    step = 1.6  # a step of FAB, in gradients
    gradients = {
        "apgd-ce": made.apgd.n_iter * made.apgd.n_restarts,
        "apgd-dlr": made.apgd.n_iter * made.apgd.n_restarts,
        "apgd-t": 9 * made.apgd_targeted.n_iter * made.apgd_targeted.n_restarts,
        "fab": step * made.fab.n_iter * made.fab.n_restarts,
        "fab-t": 9 * step * made.fab.n_iter,
        "square": made.square.n_queries * SAMPLE.forward / SAMPLE.gradient,
    }
    title = "AutoAttack: " if version == "standard" else "AutoAttack plus: "
    robust = replace(SAMPLE, correct=64, robust=64)
    found = expected_times(robust, Plan(autoattack={version: 10}), classes=10)
    assert [each.task for each in found] == [title + name for name in made.attacks_to_run]
    for each in found:
        expected = 10 * 0.01 * gradients[each.task.removeprefix(title)]
        assert each.seconds == pytest.approx(expected) and each.points == 10


def test_the_first_attack_meets_correct_points_and_later_ones_robust_points() -> None:
    plan = Plan(points=100, steps=20, autoattack={"screen": 30}, checks=10, processes=2)
    checks, pgd, first, second = expected_times(SAMPLE, plan, classes=4)
    assert (pgd.task, pgd.seconds) == ("evaluate", pytest.approx(100 * 20 * 0.01 * 48 / 64))
    low, high = wilson_interval(48, 64)
    assert (pgd.low, pgd.high) == pytest.approx((20.0 * low, 20.0 * high))
    assert first.seconds == pytest.approx(30 * 100 * 0.01 * 48 / 64 / 2)
    assert second.seconds == pytest.approx(30 * 3 * 100 * 0.01 * 32 / 64 / 2)  # 3 target classes
    assert second.high == pytest.approx(30 * 3.0 * wilson_interval(32, 64)[1] / 2)
    assert checks.points == 10 and checks.low < checks.seconds < checks.high


def test_proofs_smoothing_and_the_curve() -> None:
    proving = Plan(verify=40, certifier=lambda *_: torch.ones(1), smooth=5, votes=1000)
    plan = replace(proving, curve=50, curve_steps=100)
    proofs, smoothing, curve = expected_times(SAMPLE, plan, classes=4)
    assert curve.task == "security curve" and curve.points == 50
    assert curve.seconds == pytest.approx(50 * 100 * 0.01 * 48 / 64)
    assert proofs.seconds == pytest.approx(40 * 2.0 * 48 / 64)
    low, high = wilson_interval(48, 64)
    assert (proofs.low, proofs.high) == pytest.approx((40 * low * 1.0, 40 * high * 3.0))
    assert smoothing.seconds == smoothing.low == pytest.approx(5 * 1000 * 0.002)


class Threshold(nn.Module):
    """Two classes: the first input value below or above 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        margin = self.scale * (x.flatten(1)[:, :1] - 0.5)
        return torch.cat([-margin, margin], 1)


def test_a_few_points_say_how_many_survive() -> None:
    """At eps = .1 a point is robust if its first value is farther than .1 from .5."""
    values = torch.tensor([0.1, 0.3, 0.45, 0.55, 0.7, 0.9, 0.8, 0.2])
    x = values[:, None].repeat(1, 3)
    y = (values > 0.5).long()
    y[-2:] = 1 - y[-2:]  # two labels that the network gets wrong
    seen: list[int] = []

    def certifier(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.ones(len(x), dtype=torch.bool)

    plan = Plan(points=8, steps=20, certifier=certifier, verify=3)
    model, data = Threshold().eval(), TensorDataset(x, y)
    before = torch.get_rng_state()
    found = sampled(model, data, THREAT, plan)
    assert (found.n, found.correct, found.robust) == (8, 6, 4)
    assert found.gradient > 0 and found.forward > 0 and min(found.proofs) > 0
    assert seen == [1, 1, 1]  # one point at a time, and no more than will be proved
    rough = sampled(model, data, THREAT, plan, trained=False)
    assert (rough.correct, rough.robust) == (8, 8)
    assert torch.equal(before, torch.get_rng_state())
    assert expected_seconds(model, data, THREAT, Plan(points=8, steps=20), classes=2) == {}
    assert list(expected_seconds(model, data, THREAT, plan, classes=2)) == ["evaluate", "verify"]
