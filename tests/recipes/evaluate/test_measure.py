"""The measurement that all evaluations share, against the core called by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from robust_plugin import IBP, ThreatModel, evaluate, pgd
from robust_plugin.recipes.evaluate.measure import first_points, measure, strongest_pgd
from robust_plugin.runtime.random import seed_of

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture
def points() -> TensorDataset:
    return TensorDataset(torch.rand(11, 2), torch.arange(11) % 2)


def linear() -> nn.Module:
    """Class 1 where x_0 > x_1."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    return model.eval()


def test_measure_is_evaluate_on_the_points_in_their_order(points: TensorDataset) -> None:
    attack, certifier = pgd(THREAT, steps=2), IBP(THREAT)
    report = measure(
        linear(),
        points,
        attacks=[attack],
        seed=3,
        batch_size=4,
        certifier=certifier,
        limits={"certified": 5},
    )
    x, y = points.tensors
    torch.manual_seed(seed_of(3, "evaluation"))
    by_hand = evaluate(
        linear(),
        list(zip(x.split(4), y.split(4), strict=True)),
        attacks=[attack],
        certifier=certifier,
        limits={"certified": 5},
    )
    assert report == by_hand
    assert list(report.labels) == y.tolist() and len(report.certified or ()) == 5


def test_the_random_numbers_depend_on_the_seed_alone(points: TensorDataset) -> None:
    starts: list[Tensor] = []

    def random_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        starts.append(0.1 * torch.rand_like(x))
        return (x + starts[-1]).clamp(0, 1)

    random_attack.threat = THREAT  # type: ignore[attr-defined]
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(state)
        measure(linear(), points, attacks=[random_attack], seed=seed, batch_size=11)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_pgd_keeps_the_best_input_of_all_starts_and_fools_what_can_be_fooled() -> None:
    attack = strongest_pgd(THREAT, steps=5, restarts=3)
    assert (attack.steps, attack.restarts, attack.keep) == (5, 3, "best")  # type: ignore[attr-defined]
    model = linear()
    x = torch.tensor([[0.50, 0.45], [0.9, 0.1]])  # a ball of 0.1 closes a gap of 0.05, not of 0.8
    y = torch.tensor([1, 1])
    assert (model(attack(model, x, y)).argmax(1) == y).tolist() == [False, True]


@pytest.mark.parametrize("n", [1, 7, 11, 40])
def test_the_first_points_are_one_batch(points: TensorDataset, n: int) -> None:
    x, y = first_points(points, n, torch.device("cpu"))
    assert torch.equal(x, points.tensors[0][:n]) and torch.equal(y, points.tensors[1][:n])
