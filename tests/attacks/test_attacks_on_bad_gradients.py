"""Attacks on networks whose gradients are NaN, infinite or too small for float32."""

from collections.abc import Callable

import pytest
import torch
from suspect_networks import HONEST, cnn, digits, mlp, trained  # noqa: E402
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import Report, ThreatModel, evaluate, pgd
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.contract import NotFiniteGradient
from robust_plugin.attacks.minimum_norm import MinimumNorm

LINF, L2 = ThreatModel("Linf", 0.08), ThreatModel("L2", 0.4)
X, Y = digits(100)


def report_of(model: nn.Module, attack: object) -> tuple[float, Report]:
    torch.manual_seed(0)
    report = evaluate(model, [(X, Y)], attacks=[attack])
    return 100 * report.accuracy(attack.name), report


class Lengths(nn.Module):
    """Adds the lengths of 2x2 patches: sqrt of a sum, whose gradient at patches of zeros is NaN."""

    least = 0.0

    def forward(self, x: Tensor) -> Tensor:
        squares = 4 * F.avg_pool2d(x * x, 2, 1)
        return torch.cat([F.pad((squares + self.least).sqrt(), (0, 1, 0, 1)), x], 1)


class Logarithm(nn.Module):
    """log of what is above .05: the gradient of the branch not taken is 0 times infinity."""

    least = 0.0

    def forward(self, x: Tensor) -> Tensor:
        safe = x.clamp(min=self.least) if self.least else x
        return torch.where(x > 0.05, safe.log(), torch.full_like(x, 0.05).log())


class Columns(nn.Module):
    """Adds the length of each column of pixels, whose gradient at columns of zeros is NaN."""

    least = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * (x.square().sum(2, keepdim=True) + self.least).sqrt()


NAN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], float]] = {
    "lengths": (Lengths, lambda: cnn(channels=2), 1e-10),
    "logarithm": (Logarithm, cnn, 0.05),
    "columns": (Columns, mlp, 1e-10),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A network with NaN gradients, and one of the same outputs whose gradients are finite."""
    first, rest, least = NAN[name]

    def honest() -> nn.Module:
        layer = first()
        layer.least = least
        return nn.Sequential(layer, rest())

    model = trained(f"honest {name}", honest)
    blind = nn.Sequential(first(), model[1]).eval()
    with torch.no_grad():
        torch.testing.assert_close(blind(X), model(X), rtol=1e-3, atol=1e-3)
    return blind, model


@pytest.mark.parametrize("name", NAN)
@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_attacks_do_as_well_as_on_the_same_network_with_finite_gradients(
    name: str, threat: ThreatModel
) -> None:
    blind, honest = pair(name)
    for attack in (
        pgd(threat, steps=20, restarts=2),
        AutoAttack(threat, version="screen", seed=0),
        MinimumNorm(threat, targets=3, steps=20),
    ):
        wanted = report_of(honest, attack)[0]
        found, report = report_of(blind, attack)
        clean = 100 * report.accuracy()
        if isinstance(attack, MinimumNorm):
            # Of the boundary that it looks for, the coordinates without a gradient are missing.
            assert clean - found > (clean - wanted) / 2
        else:
            assert found <= wanted + 3 < clean - 5
        assert sum("NaN or infinite" in finding for finding in report.findings) == 1
        assert attack.name in report.remarks


class Nothing(nn.Module):
    """Adds sqrt(0) times 0, whose gradient is NaN everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * (x - x).square().sum((1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("name", HONEST)
def test_a_network_without_any_finite_gradient_is_a_finding(name: str) -> None:
    model = nn.Sequential(Nothing(), trained(name, HONEST[name])).eval()
    for threat in (LINF, L2):
        found, report = report_of(model, pgd(threat, steps=5))
        assert found > 80  # nothing to climb, and the report says so
        assert any("NaN or infinite at 32 of 32 points" in each for each in report.findings)
        assert "doubtful" in report.remarks["PGD-5"]


def test_nan_behind_the_first_points_is_found_by_the_attack() -> None:
    """The first 32 points are looked at before any attack; this one has its NaN at the last."""

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0 * (x[:, :, :1, :1] - 0.123).abs().sqrt()

    model = nn.Sequential(Late(), trained("mlp", mlp)).eval()
    x, y = X[:50].clone(), Y[:50]
    x[-1, 0, 0, 0] = 0.123
    attack = AutoAttack(ThreatModel("Linf", 1e-3), version="screen", seed=0)
    start_at_clean = MinimumNorm(LINF, steps=5)
    findings = evaluate(model, [(x, y)], attacks=[attack, start_at_clean]).findings
    assert len(findings) == 1 and "NaN or infinite at some inputs" in findings[0]
    with pytest.warns(NotFiniteGradient, match="NaN or infinite at some inputs"):
        start_at_clean(model, x, y)


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_a_factor_on_the_logits_hides_nothing(name: str, threat: ThreatModel) -> None:
    """A positive factor changes no decision, so that robust accuracy is that of the network."""
    model = trained(name, HONEST[name])
    attack = pgd(threat, steps=20, restarts=5)
    wanted, report = report_of(model, attack)
    assert report.findings == () and wanted < 80
    for factor in (30, 1000):
        found, report = report_of(Scaled(model, factor), attack)
        assert found == pytest.approx(wanted, abs=3)
        (finding,) = report.findings
        assert "cross-entropy's gradient underflows at" in finding
    by_margin = pgd(threat, steps=20, loss="margin")
    small = report_of(Scaled(model, 1e-25), by_margin)[0]
    assert small == pytest.approx(report_of(model, by_margin)[0], abs=1)


@pytest.mark.parametrize("name", HONEST)
def test_sigmoid_outputs_are_a_finding(name: str) -> None:
    model = nn.Sequential(trained(name, HONEST[name]), nn.Sigmoid()).eval()
    report = report_of(model, pgd(LINF, steps=20))[1]
    assert any("all lie in [0, 1], like those of a sigmoid" in each for each in report.findings)


def test_an_attack_on_a_finished_network_is_no_worse_than_before() -> None:
    """Where nothing underflows, PGD takes the textbook's steps on cross-entropy, bit for bit."""
    model = trained("cnn", cnn)
    with torch.no_grad():
        rows = F.cross_entropy(model(X), Y, reduction="none") > 1e-3
    x, y = X[rows], Y[rows]
    for threat in (LINF, L2):
        ours = pgd(threat, steps=10, start="clean")(model, x, y)
        point = x.clone()
        for _ in range(10):
            point.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
            length = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            step = grad.sign() if threat is LINF else grad * (1 / length)
            point = threat.project(point.detach() + threat.eps / 4 * step, x)
        assert torch.equal(ours, point)
