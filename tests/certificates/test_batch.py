"""One batch of points: which points each method gets, and what it decides."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robust_plugin import ThreatModel
from robust_plugin.certificates.batch import Batch
from robust_plugin.certificates.contract import FALSIFIED, MISCLASSIFIED, UNKNOWN, VERIFIED

THREAT = ThreatModel("Linf", eps=0.1)


@dataclass(frozen=True)
class Claims:
    """A prover whose margins to the other class are given, one per point that it gets."""

    threat: ThreatModel
    margins_to_give: tuple
    seen: list

    def margins(self, model, x, y):
        self.seen.append(x[:, 0].tolist())
        given = torch.tensor(self.margins_to_give[: len(x)])
        return torch.zeros(len(x), 2).scatter(1, 1 - y[:, None], given[:, None])

    def __call__(self, model, x, y):
        raise NotImplementedError


@pytest.fixture
def batch():
    """Class 1 where x > 0.5; the last of four points is misclassified."""
    model = nn.Linear(1, 2).eval()
    model.load_state_dict(
        {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([0.5, -0.5])}
    )
    x, y = torch.tensor([[0.1], [0.45], [0.9], [0.8]]), torch.tensor([0, 0, 1, 0])
    return Batch(model, lambda: model, x, y, THREAT, first=40)


def towards_the_other_class(model, x, y):
    return x + 0.1 * (1 - 2 * y[:, None])


def test_each_method_gets_the_points_that_it_may_decide(batch):
    seen = []
    batch.run(0, "prover", Claims(THREAT, (1.0, -1.0, float("nan")), seen), None)
    batch.run(1, "attack", towards_the_other_class, None)
    batch.run(2, "prover", Claims(THREAT, (-0.5,), seen), None)
    # The attack fools the second point alone, so the last prover gets the third.
    assert [len(each) for each in seen] == [3, 1] and seen[1] == [pytest.approx(0.9)]
    found = batch.result()
    assert found["verdict"].tolist() == [VERIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED]
    assert found["stage"].tolist() == [0, 1, -1, -1]
    assert found["margin"].tolist() == [1.0, -1.0, -0.5, -torch.inf]
    assert found["x_adv"][:, 0].tolist() == pytest.approx([0.1, 0.55, 0.9, 0.8])


def test_a_counterexample_to_a_proof_names_the_point_by_its_number(batch):
    batch.run(0, "prover", Claims(THREAT, (1.0, 1.0, 1.0), []), None)
    with pytest.raises(ValueError, match="attack found a counterexample to point 41"):
        batch.run(1, "attack", towards_the_other_class, None)


def test_points_without_time_left_are_left_out(batch):
    seen = []
    batch.spent += 2.0
    batch.run(0, "prover", Claims(THREAT, (1.0, 1.0, 1.0), seen), 1.0)
    assert seen == [] and (batch.verdict != VERIFIED).all()
    batch.run(0, "prover", Claims(THREAT, (1.0, 1.0, 1.0), seen), 60.0)
    assert batch.verdict.tolist() == [VERIFIED, VERIFIED, VERIFIED, MISCLASSIFIED]
    assert (batch.spent[:3] > 2.0).all() and batch.spent[3] == 2.0
