"""Objectives on bounds against their formulas."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    Ramp,
    ThreatModel,
    certified,
    ibp_margins,
    mixtrain,
)
from robust_plugin.objectives.by_bounds import nrs_loss


def cross_entropy_of(margins, y):
    """-log softmax of z_y = 0, z_j = -m_j, point by point."""
    total = 0.0
    for row, label in zip(margins.tolist(), y.tolist(), strict=True):
        z = [0.0 if j == label else -m for j, m in enumerate(row)]
        total += math.log(sum(math.exp(v) for v in z))
    return total / len(y)


def looser(model, x, y, threat):
    """Other bounds than IBP's: valid, and a unit worse."""
    return (ibp_margins(model, x, y, threat) - 1).scatter(1, y[:, None], 0.0)


@pytest.mark.parametrize("epoch", [0, 3, 6, 9.5])
def test_certified_equals_its_formula(cnn, batch, epoch):
    """eps, kappa and beta at their place of the ramp, of 6 in 10 epochs."""
    model, x, y = cnn().double().eval(), batch[0].double(), batch[1]
    threat = ThreatModel("Linf", eps=0.1)
    objective = certified(threat, bounds=looser, kappa=(0.9, 0.3), beta=(1.0, 0.2))
    objective.progress(epoch, 10)
    t = min(1.0, epoch / 6)
    kappa, beta = 0.9 + (0.3 - 0.9) * t, 1.0 + (0.2 - 1.0) * t
    ibp = ibp_margins(model, x, y, ThreatModel("Linf", eps=0.1 * t))
    margins = beta * (ibp - 1) + (1 - beta) * ibp
    wanted = kappa * F.cross_entropy(model(x), y).item()
    wanted += (1 - kappa) * cross_entropy_of(margins, y)
    assert objective(model, x, y).item() == pytest.approx(wanted, abs=1e-9)


def test_without_progress_a_loss_is_that_of_the_end(cnn, batch, threat):
    model, (x, y) = cnn().eval(), batch
    wanted = cross_entropy_of(ibp_margins(model, x, y, threat), y)
    assert certified(threat)(model, x, y).item() == pytest.approx(wanted, rel=1e-5)
    # beta ends at 0: other bounds are not even computed.
    other = certified(threat, bounds=lambda *_: pytest.fail("computed at beta 0"))
    assert other(model, x, y).item() == pytest.approx(wanted, rel=1e-5)
    begun = certified(threat)
    begun.progress(0, 10)
    assert begun(model, x, y).item() == pytest.approx(F.cross_entropy(model(x), y).item())


def test_batchnorm_sees_one_clean_batch_and_bounds_see_its_statistics(cnn, batch, threat):
    model, reference = cnn(), cnn()
    loss = certified(threat)(model, *batch)
    reference(batch[0])
    assert int(model[1].num_batches_tracked) == 1
    assert torch.equal(model[1].running_mean, reference[1].running_mean)
    z = reference[0](batch[0])
    with torch.no_grad():
        reference[1].running_mean.copy_(z.mean((0, 2, 3)))
        reference[1].running_var.copy_(z.var((0, 2, 3), unbiased=False))
    wanted = cross_entropy_of(ibp_margins(reference, *batch, threat), batch[1])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_two_losses_before_one_backward_pass(cnn, batch, threat):
    """The second moves BatchNorm's statistics, which the graph of the first still needs."""
    model, objective = cnn(), certified(threat, kappa=(0.5, 0.5), nrs=0.01)
    (objective(model, *batch) + objective(model, *batch)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bounds_get_the_network_inside_a_wrapper(cnn, batch, threat):
    seen = []

    def bounds(model, x, y, threat):
        seen.append(model)
        return ibp_margins(model, x, y, threat)

    model = cnn()
    certified(threat, bounds=bounds, beta=(1, 1), nrs=0.1)(nn.DataParallel(model), *batch)
    mixtrain(threat, bounds=bounds, probability=1.0)(nn.DataParallel(model), *batch)
    assert seen == [model, model]


def test_nrs_equals_its_formula(cnn, batch):
    model, x, threat = cnn().double().eval(), batch[0][:3].double(), ThreatModel("Linf", eps=0.05)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
    low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)

    def through(conv, low, high):
        c, r = (high + low) / 2, (high - low) / 2
        c = conv(c)
        r = F.conv2d(r, conv.weight.abs(), None, conv.stride, conv.padding, 1, conv.groups)
        return c - r, c + r

    total = 0.0
    low, high = through(model[0], low, high)
    low, high = model[1](low), model[1](high)  # its weights are positive
    gamma = model[1].weight.view(1, -1, 1, 1)
    for place, square in ((2, gamma.square()), (4, torch.ones(1).double())):
        each = -torch.tanh(1 + low * high / square)
        total = total + torch.where((low < 0) & (high > 0), each, 0.0).mean()
        low, high = through(model[3], low.relu(), high.relu()) if place == 2 else (low, high)
    found = nrs_loss(model, x, threat)
    assert found.item() == pytest.approx(total.item(), abs=1e-9)
    plain, added = certified(threat), certified(threat, nrs=0.01)
    gap = added(model, x, batch[1][:3]) - plain(model, x, batch[1][:3])
    assert gap.item() == pytest.approx(0.01 * total.item(), abs=1e-9)
    found.backward()
    assert model[1].weight.grad is not None and model[0].weight.grad.abs().sum() > 0


def test_mixtrain_equals_its_formula(cnn, batch, threat):
    model, (x, y) = cnn().eval(), batch
    objective = mixtrain(threat, bounds=looser, points=3, probability=0.5)
    objective.progress(3, 10)
    clean, bounded = F.cross_entropy(model(x), y).item(), 0
    for seed in range(30):
        torch.manual_seed(seed)
        loss = objective(model, x, y).item()
        torch.manual_seed(seed)
        wanted = clean
        if torch.rand(()) < 0.5:
            few = torch.randperm(16)[:3]
            margins = looser(model, x[few], y[few], ThreatModel("Linf", eps=0.05))
            wanted += 0.1 * cross_entropy_of(margins, y[few])
            bounded += 1
        assert loss == pytest.approx(wanted, rel=1e-5)
    assert 5 < bounded < 25


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0, 0.1), (10, 0.1), (14.9, 0.1), (15, 0.25), (20, 0.625), (99, 50.0)]
)
def test_the_weight_of_mixtrain(threat, epoch, weight):
    objective = mixtrain(threat, bounds=ibp_margins, ramp=Ramp(0.0, 0.1))
    objective.progress(epoch, 100)
    assert objective.weight == pytest.approx(weight)


THREAT, L2 = ThreatModel("Linf", eps=0.02), ThreatModel("L2", eps=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: certified(THREAT, kappa=(1.0, 1.5)), r"kappa is \(1.0, 1.5\); legal"),
        (lambda: certified(THREAT, beta=(-0.1, 0)), "beta is"),
        (lambda: certified(THREAT, nrs=-1), "nrs is -1"),
        (lambda: certified(THREAT).progress(11, 10), "progress to epoch 11 of 10"),
        (lambda: mixtrain(THREAT, bounds=ibp_margins, points=0), "points is 0"),
        (lambda: mixtrain(THREAT, bounds=ibp_margins, probability=2), "probability 2"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
