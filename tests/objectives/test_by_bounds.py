import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    Free,
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    Ramp,
    ThreatModel,
    certified,
    gaussian,
    ibp_margins,
    mixtrain,
    smoothadv,
    stability,
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


@pytest.mark.parametrize(
    ("share", "linear", "smoothed"),
    [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.3, 0.25, 0.0769), (0.4, 0.5, 0.3846), (0.6, 1.0, 1.0),
     (1.0, 1.0, 1.0)],
)  # fmt: skip
def test_ramps(share, linear, smoothed):
    """The smoothed one at a quarter: c / 4^4 with c = 4^4 / (1 + 4 * 3) is 1/13."""
    assert Ramp(0.2, 0.6)(share) == pytest.approx(linear)
    assert Ramp(0.2, 0.6, "smoothed")(share) == pytest.approx(smoothed, abs=1e-4)


def test_the_smoothed_ramp_has_no_corner_and_no_jump():
    ramp, h = Ramp(0.0, 1.0, "smoothed"), 1e-6
    slopes = [(ramp(t + h) - ramp(t - h)) / (2 * h) for t in (0.2499, 0.2501, 0.5, 0.9)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2)
    assert slopes[1] == pytest.approx(slopes[3], rel=1e-3)
    assert Ramp(0.3, 0.3)(0.29) == 0 and Ramp(0.3, 0.3)(0.3) == 1 and Ramp(0, 0)(0.0) == 1


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


def test_gaussian_equals_its_formula(cnn, batch):
    model, (x, y) = cnn().eval(), batch
    torch.manual_seed(3)
    loss = gaussian(sigma=0.5)(model, x, y)
    torch.manual_seed(3)
    wanted = F.cross_entropy(model(x + 0.5 * torch.randn_like(x)), y)
    assert loss.item() == pytest.approx(wanted.item())


def test_smoothadv_trains_on_a_point_of_the_ball_that_is_worse(cnn, batch):
    """Attack and loss share their noise: against it, the loss is above that of the clean point."""
    model, (x, y), seen = cnn().eval(), batch, []
    threat = ThreatModel("L2", eps=0.5)
    objective = smoothadv(threat, sigma=0.1, samples=3, steps=5)
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    torch.manual_seed(4)
    loss = objective(model, x, y)
    torch.manual_seed(4)
    noise = 0.1 * torch.randn(3, *x.shape)
    inputs = seen[-1].view(3, *x.shape) - noise
    assert torch.allclose(inputs[0], inputs[2], atol=1e-6)
    moved = (inputs[0] - x).flatten(1).norm(dim=1)
    assert (moved <= 0.5 + 1e-5).all() and (moved > 0.3).all()
    assert inputs.min() >= -1e-6 and inputs.max() <= 1 + 1e-6
    clean = F.cross_entropy(model((x + noise).flatten(0, 1)), y.repeat(3))
    assert loss.item() > clean.item() + 0.01
    objective.ramp = Ramp(0.0, 1.0)
    objective.progress(0, 10)
    torch.manual_seed(4)
    assert objective(model, x, y).item() == pytest.approx(clean.item(), rel=1e-5)


def pruner_of(kind, model):
    if kind == "hydra":
        return HydraPruner(model, 0.3)
    if kind == "2:4":
        return HydraPruner(model, pattern="2:4")
    if kind == "channels":
        member = Member(model[6], "6", "weight", dim=1, index=torch.arange(128) // 16)
        return HarpPruner(model, 0.5, groups=[Group((member,), channels=8)])
    return {"harp": HarpPruner, "magnitude": MagnitudePruner}[kind](model, 0.3)


THREAT, L2 = ThreatModel("Linf", eps=0.02), ThreatModel("L2", eps=0.1)
OBJECTIVES = {
    "certified": lambda: certified(THREAT, kappa=(1.0, 0.5), nrs=0.01),
    "certified L2": lambda: certified(L2, kappa=(1.0, 0.5)),
    "other bounds": lambda: certified(THREAT, bounds=looser, kappa=(0, 0), beta=(1, 0.5)),
    "mixtrain": lambda: mixtrain(THREAT, bounds=ibp_margins, points=4),
    "gaussian": lambda: gaussian(sigma=0.1),
    "stability": lambda: stability(sigma=0.1),
    "smoothadv": lambda: smoothadv(L2, sigma=0.1, steps=3),
    "free": lambda: Free(THREAT),
}


@pytest.mark.parametrize("kind", ["hydra", "harp", "2:4", "channels", "magnitude"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:masks cover")
def test_every_objective_through_pretrain_prune_and_finetune(cnn, name, kind):
    """Two easy classes in each quarter of the image: the loss falls, and the masks move."""
    y = torch.arange(40) % 4
    x = 0.2 * torch.rand(40, 1, 8, 8)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.7
    model = cnn()

    def train(parameters, lr, pruner=None, phase=None):
        objective = OBJECTIVES[name]()
        optimizer = torch.optim.Adam(parameters, lr=lr)
        if phase == "prune":
            pruner.follow(optimizer, epochs=3, steps_per_epoch=4)
        losses = []
        for step in range(12):
            if hasattr(objective, "progress"):
                objective.progress(step / 4, 3)
            loss = objective(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(map(math.isfinite, losses))

    def end():
        model.eval()
        torch.manual_seed(0)
        loss = OBJECTIVES[name]()(model, x, y).item()
        model.train()
        return loss

    before = end()
    train(model.parameters(), 1e-2)
    assert end() < before
    pruner = pruner_of(kind, model)
    if kind != "magnitude":
        first = [mask.scores.detach().clone() for mask in pruner.masks]
        train(pruner.set_phase("prune"), 0.05, pruner, "prune")
        assert all((a != b.scores).any() for a, b in zip(first, pruner.masks, strict=True))
    parameters = pruner.set_phase("finetune")
    pruned = end()
    train(parameters, 5e-3)
    assert end() < max(pruned, 0.1)  # some have learned all there is before
    if kind != "2:4":
        assert pruner.kept == pruner.budget.total


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: certified(THREAT, kappa=(1.0, 1.5)), r"kappa is \(1.0, 1.5\); legal"),
        (lambda: certified(THREAT, beta=(-0.1, 0)), "beta is"),
        (lambda: certified(THREAT, nrs=-1), "nrs is -1"),
        (lambda: Ramp(0.5, 0.2), "a ramp from 0.5 to 0.2"),
        (lambda: Ramp(shape="cosine"), "shape is 'cosine'; legal: linear, smoothed"),
        (lambda: certified(THREAT).progress(11, 10), "progress to epoch 11 of 10"),
        (lambda: mixtrain(THREAT, bounds=ibp_margins, points=0), "points is 0"),
        (lambda: mixtrain(THREAT, bounds=ibp_margins, probability=2), "probability 2"),
        (lambda: gaussian(sigma=0), "sigma is 0; legal: a number above 0"),
        (lambda: smoothadv(THREAT), "norm is Linf; smoothadv moves in L2"),
        (lambda: smoothadv(L2, sigma=-1), "sigma is -1"),
        (lambda: smoothadv(L2, samples=0), "samples is 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
