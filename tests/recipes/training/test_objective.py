"""Objectives built from their settings are those of the library with the same arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import IBP, ThreatModel, gaussian, mart, pgd, smoothadv, stability, trades
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.objectives.by_bounds import Certified
from robust_plugin.objectives.ramp import Ramp, Shape
from robust_plugin.recipes.config.objective import ObjectiveConfig, ObjectiveName
from robust_plugin.recipes.config.schema import ThreatConfig
from robust_plugin.recipes.training.objective import build_objective, validation_certifier

THREAT, L2 = ThreatModel("Linf", eps=0.1), ThreatModel("L2", eps=0.5)
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


def loss(objective: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> float:
    """The loss of a fixed network on fixed points, with fixed random numbers."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(2)
    return objective(model, X, Y).item()


def test_adversarial_training_is_the_cross_entropy_under_pgd() -> None:
    config = ObjectiveConfig("adversarial", steps=3, step_size="0.02")
    attack = pgd(THREAT, steps=3, step_size=0.02)
    expected = loss(lambda model, x, y: F.cross_entropy(model(attack(model, x, y)), y))
    clean = loss(lambda model, x, y: F.cross_entropy(model(x), y))
    assert loss(build_objective(config, THREAT)) == pytest.approx(expected, rel=1e-6)
    assert loss(build_objective(ObjectiveConfig("benign"), THREAT)) == clean < expected


@pytest.mark.parametrize(
    ("settings", "threat", "objective"),
    [
        ({"name": "trades"}, THREAT, trades(THREAT, beta=6.0, steps=2)),
        ({"name": "trades", "beta": 1.0}, THREAT, trades(THREAT, beta=1.0, steps=2)),
        ({"name": "mart"}, THREAT, mart(THREAT, beta=5.0, steps=2)),
        ({"name": "mart", "beta": 2.0}, THREAT, mart(THREAT, beta=2.0, steps=2)),
        ({"name": "stability", "sigma": 0.3}, L2, stability(sigma=0.3, beta=6.0)),
        ({"name": "gaussian", "sigma": 0.3}, L2, gaussian(sigma=0.3)),
        (
            {"name": "smoothadv", "sigma": 0.3, "samples": 3},
            L2,
            smoothadv(L2, sigma=0.3, samples=3, steps=2),
        ),
    ],
)
def test_an_objective_by_name_has_the_papers_weight_or_the_one_given(
    settings: dict[str, Any],
    threat: ThreatModel,
    objective: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> None:
    built = build_objective(ObjectiveConfig(**settings, steps=2), threat)
    assert loss(built) == loss(objective)


def test_bounds_are_trained_at_a_multiple_of_eps() -> None:
    built = build_objective(ObjectiveConfig("certified", eps_factor=1.5), THREAT)
    assert isinstance(built, Certified) and built.threat.eps == pytest.approx(0.15)
    with pytest.raises(ValueError, match=r"objective.eps_factor is 0; legal: above 0"):
        build_objective(ObjectiveConfig("certified", eps_factor=0), THREAT)


def test_only_training_by_bounds_is_validated_by_proofs() -> None:
    for name in ("benign", "adversarial", "trades", "mart", "free", "gaussian", "smoothadv"):
        assert validation_certifier(ObjectiveConfig(name), THREAT) is None  # type: ignore[arg-type]
    ibp = validation_certifier(ObjectiveConfig("certified"), THREAT)
    assert isinstance(ibp, IBP) and ibp.threat == THREAT  # not at the eps of training
    for points, batch_size in ((1, 1), (4, 32)):
        crown = validation_certifier(ObjectiveConfig("mixtrain", points=points), THREAT)
        assert isinstance(crown, LiRPA) and crown.batch_size == batch_size


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_trains_through_all_phases(
    name: str, tmp_path: Path, run_tiny: Callable[..., dict[str, Any]]
) -> None:
    epochs = (
        [f"--{s}.epochs=4" for s in ("pretrain", "prune", "finetune")] if name == "free" else []
    )
    norm = ["--threat.norm=L2"] * (name == "smoothadv")
    left = run_tiny("hydra", tmp_path / "out", f"--objective.name={name}", *epochs, *norm)
    stages = {line["stage"] for line in left["log"]}
    assert stages == {"pretrain", "prune", "finetune"}


def test_objectives_take_the_papers_beta_unless_given() -> None:
    threat = ThreatConfig(eps="0.1").build()

    def beta(name: ObjectiveName, given: float | None = None) -> float:
        """Solve the loss, which is linear in beta, for beta."""
        first, second, found = (
            loss(build_objective(ObjectiveConfig(name, beta=each), threat))
            for each in (1.0, 2.0, given)
        )
        return 1 + (found - first) / (second - first)

    for name, paper in (("trades", 6), ("mart", 5), ("stability", 6)):
        assert beta(name) == pytest.approx(paper, rel=1e-3)  # type: ignore[arg-type]
    assert beta("trades", 1.5) == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("name", ["certified", "mixtrain", "smoothadv"])
def test_a_ramp_rises_as_the_settings_say(name: ObjectiveName) -> None:
    threat = ThreatModel("L2" if name == "smoothadv" else "Linf", eps=0.1)
    for shape in get_args(Shape):
        objective: Any = build_objective(ObjectiveConfig(name, ramp=shape), threat, ramp=0.5)
        objective.progress(1, 20)
        assert objective.risen == Ramp(0.0, 0.5, shape)(0.05) > 0
    with pytest.raises(ValueError, match="shape is 'steep'; legal: linear, smoothed"):
        build_objective(ObjectiveConfig(name, ramp="steep"), threat, ramp=0.5)  # type: ignore[arg-type]
