"""Points that are not fooled yet: which they are, and what is computed for them."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robust_plugin import ThreatModel
from robust_plugin.attacks.survivors import AllFooled, AttackRun, Survivors

THREAT = ThreatModel("Linf", 0.1)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def points(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, network()(x).argmax(1)


def test_only_points_that_are_not_fooled_yet_are_computed():
    x, y = points(6)
    sizes = []

    def model(points):
        sizes.append(len(points))
        return network()(points)

    wrong = y.clone()
    wrong[0] = (y[0] + 1) % 4  # fooled from the start
    batch = Survivors(model, x, wrong, THREAT)
    assert batch.robust.tolist() == [False] + [True] * 5
    assert batch.rest().tolist() == [1, 2, 3, 4, 5]
    clean = batch(x[1:])
    assert torch.equal(clean, network()(x[1:])) and sizes == [6, 5]
    # What misclassifies within the ball is kept, and not computed again.
    logits = clean.clone()
    logits[2] = -logits[2]
    standing = batch.keep(batch.rest(), x[1:] + 0.05, logits)
    assert standing is not None and standing.tolist() == [0, 1, 3, 4]
    assert batch.robust.tolist() == [False, True, True, False, True, True]
    assert torch.equal(batch.x_adv[3], x[3] + 0.05) and torch.equal(batch.x_adv[4], x[4])
    again = batch.predict(x[1:])
    assert sizes == [6, 5, 4]
    assert torch.equal(again[2], clean[2]) and torch.allclose(again, clean, atol=1e-6)
    assert batch.rest().tolist() == [1, 2, 4, 5]
    with pytest.raises(AllFooled):
        batch.keep(batch.rest(), x[batch.rest()] + 0.05, -network()(x[batch.rest()]))
    with pytest.raises(AllFooled):
        batch.rest()
    # Beyond the ball it is not.
    far = Survivors(model, x, y, THREAT)
    assert far.keep(far.rest(), x + 0.2, -network()(x)) is not None
    assert bool(far.robust.all()) and torch.equal(far.x_adv, x)


def test_gradients_of_fooled_points_are_zero_and_of_the_others_the_models():
    x, y = points(6)
    batch = Survivors(network(), x, y, THREAT)
    logits = network()(x).detach()
    logits[1] = -logits[1]
    batch.keep(batch.rest(), x, logits)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [batch.predict(inputs[0]), network()(inputs[1])]
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), each)[0]
        for out, each in zip(outs, inputs, strict=True)
    )
    assert float(ours[1].abs().max()) == 0
    rest = torch.tensor([0, 2, 3, 4, 5])
    torch.testing.assert_close(ours[rest], theirs[rest])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_points_on_the_edge_of_a_small_ball_are_inside(norm):
    """x + eps minus x is more than eps by rounding, and the library counts such points."""
    threat = ThreatModel(norm, "2/255")
    x = torch.rand(200, 3, 32, 32)
    away = torch.randn_like(x).sign() * threat.eps / (1 if norm == "Linf" else 3072**0.5)
    points = Survivors(lambda x: torch.eye(2)[[0] * len(x)], x, torch.zeros(200).long(), threat)
    moved, wrong = x + away, torch.eye(2)[[1] * 200]
    if norm == "Linf":
        assert float(threat.norms(moved - x).max()) > threat.eps
    with pytest.raises(AllFooled):
        points.keep(points.rest(), moved, wrong)
    far = Survivors(points.model, x, points.y, threat)
    assert far.keep(far.rest(), x + 1.01 * away, wrong) is not None and bool(far.robust.all())


def test_a_run_keeps_the_rows_of_all_its_fields():
    @dataclass
    class Run(AttackRun):
        extra: torch.Tensor

    run = Run(torch.arange(5), torch.rand(5, 2), 10 * torch.arange(5))
    x = run.x
    run.keep_only(None)
    assert run.x is x
    run.keep_only(torch.tensor([4, 1]))
    assert run.rows.tolist() == [4, 1] and run.extra.tolist() == [40, 10]
    assert torch.equal(run.x, x[[4, 1]])
