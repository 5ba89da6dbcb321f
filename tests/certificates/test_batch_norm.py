"""Bounds in training use BatchNorm's statistics of the clean batch, and their gradient."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    IBP,
    HydraPruner,
    ThreatModel,
    certified,
    finalize,
    ibp_margins,
    mixtrain,
)
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.certificates.batch_norm import clean_pass, statistics_of
from robust_plugin.objectives.by_bounds import nrs_loss
from robust_plugin.recipes.data.datasets import load_data

THREAT = ThreatModel("Linf", eps=0.05)


def network(affine=True, momentum=0.1):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4, affine=affine, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4, affine=affine, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 8, 8, generator=generator)
    return x, torch.randint(5, (6,), generator=generator)


def by_hand(tensors, x, y, rows=slice(None), *, running=False, gammas=None):
    """CE(-margins) and NRS of ``network``, its arithmetic of centres and radii written out.

    The clean batch goes along, and each BatchNorm's mean and variance are those of what arrives.
    """
    clean = x
    low, high = (x[rows] - THREAT.eps).clamp(0, 1), (x[rows] + THREAT.eps).clamp(0, 1)
    c, r, nrs = (low + high) / 2, (high - low) / 2, 0.0
    for conv, norm, stride in (("0", "1", 1), ("3", "4", 2)):
        w, b = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
        clean, c = (F.conv2d(v, w, b, stride, 1) for v in (clean, c))
        r = F.conv2d(r, w.abs(), None, stride, 1)
        mean = sum(clean[:, :, i, j].mean(0) for i, j in _places(clean)) / _count(clean)
        var = sum((clean[:, :, i, j] - mean).square().mean(0) for i, j in _places(clean))
        var = var / _count(clean)
        if running:
            mean, var = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
        ones = torch.ones_like(mean)
        scale = tensors.get(f"{norm}.weight", ones) / (var + 1e-5).sqrt()
        shift = tensors.get(f"{norm}.bias", 0 * ones) - mean * scale
        scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        clean, c, r = clean * scale + shift, c * scale + shift, r * scale.abs()
        # NRS divides by it detached.
        gamma = (gammas or tensors).get(f"{norm}.weight", ones).view(1, -1, 1, 1)
        product = (c - r) * (c + r)
        nrs = nrs - (torch.tanh(1 + product / gamma**2) * (product < 0)).mean()
        low, high = (c - r).relu(), (c + r).relu()
        clean, c, r = clean.relu(), (low + high) / 2, (high - low) / 2
    w, b = tensors["7.weight"], tensors["7.bias"]
    rows_w = w[y[rows]][:, None] - w
    margins = torch.einsum("bi,bji->bj", c.flatten(1), rows_w) + b[y[rows]][:, None] - b
    margins = margins - torch.einsum("bi,bji->bj", r.flatten(1), rows_w.abs())
    return F.cross_entropy(-margins, y[rows]), nrs


def _places(v):
    return [(i, j) for i in range(v.shape[2]) for j in range(v.shape[3])]


def _count(v):
    return v.shape[2] * v.shape[3]


def check(model, loss, formula, step=1e-6):
    """A loss's value, and its gradient by central differences of the formula in float64."""
    tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}
    assert loss.item() == pytest.approx(formula(tensors).item(), abs=1e-9)
    loss.backward()
    checked = 0
    for name, parameter in model.named_parameters():
        flat = tensors[name].view(-1)
        grad = torch.zeros_like(flat) if parameter.grad is None else parameter.grad.view(-1)
        for i in torch.randperm(len(flat))[:6].tolist():
            flat[i] += step
            above = formula(tensors)
            flat[i] -= 2 * step
            slope = (above - formula(tensors)) / (2 * step)
            flat[i] += step
            assert float(grad[i]) == pytest.approx(float(slope), rel=1e-4, abs=1e-7), (name, i)
            checked += 1
    assert checked > 20


def ready(model):
    """In float64, with weights of BatchNorm that are not all 1, and none positive for one."""
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 2), norm.bias.normal_(std=0.2)
                norm.weight[0] *= -1
    return model.double()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_ibp_and_its_gradient_are_the_formulas(points, affine, momentum):
    model, x, y = ready(network(affine, momentum)), points[0].double(), points[1]
    loss = certified(THREAT)(model, x, y)
    check(model, loss, lambda tensors: by_hand(tensors, x, y)[0])
    assert int(model[1].num_batches_tracked) == 1


def test_nrs_and_its_gradient_are_the_formulas(points):
    model, x, y = ready(network()), points[0].double(), points[1]
    loss = certified(THREAT, kappa=(1.0, 1.0), nrs=1.0)(model, x, y)
    with torch.no_grad():
        clean = F.cross_entropy(model(x), y)
    gammas = {k: v.detach().clone() for k, v in model.state_dict().items()}
    with clean_pass(model, x):
        formula = lambda tensors: by_hand(tensors, x, y, gammas=gammas)[1]  # noqa: E731
        check(model, nrs_loss(model, x, THREAT), formula)
        found = nrs_loss(model, x, THREAT)
    assert loss.item() == pytest.approx((clean + found).item(), abs=1e-9)


def test_mixtrain_takes_the_statistics_of_the_whole_batch(points):
    model, x, y = ready(network()), points[0].double(), points[1]
    objective = mixtrain(THREAT, bounds=ibp_margins, points=2, probability=1.0)
    torch.manual_seed(5)
    loss = objective(model, x, y)
    torch.manual_seed(5)
    torch.rand(())  # whether the batch is bounded
    few = torch.randperm(6)[:2]
    with torch.no_grad():
        clean = F.cross_entropy(model(x), y)
    tensors = {k: v.detach() for k, v in model.state_dict().items()}
    wanted = clean + 0.1 * by_hand(tensors, x, y, few)[0]
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9)


@pytest.mark.parametrize("affine", [True, False])
def test_bounds_of_the_library_and_their_gradient(points, affine):
    """Its IBP is the formula; CROWN-IBP is that of a network with these scales and shifts."""
    model, x, y = ready(network(affine)), points[0].double(), points[1]
    certifier = LiRPA(THREAT, "IBP")
    with clean_pass(model, x):
        loss = F.cross_entropy(-certifier.bounds(model, x, y), y)
    check(model, loss, lambda tensors: by_hand(tensors, x, y)[0])

    def folded(tensors):
        """CROWN-IBP of the network in evaluation mode, its running statistics the batch's."""
        other = network(affine).double().eval()
        other.load_state_dict(tensors)
        z = x
        for layer in other:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(z.mean((0, 2, 3)))
                layer.running_var.copy_(z.var((0, 2, 3), unbiased=False))
            z = layer(z)
        return F.cross_entropy(-LiRPA(THREAT, "CROWN-IBP").bounds(other, x, y), y)

    model.zero_grad()
    crown = certified(THREAT, bounds=LiRPA(THREAT).bounds, beta=(1.0, 1.0))
    # A small step: CROWN's lower line jumps where |u| = |l|.
    check(model, crown(model, x, y), torch.no_grad()(folded), step=1e-7)


def test_frozen_norms_keep_their_running_statistics(points):
    model, x, y = ready(network()), points[0].double(), points[1]
    model[1].eval(), model[4].eval()
    loss = certified(THREAT)(model, x, y)
    check(model, loss, lambda tensors: by_hand(tensors, x, y, running=True)[0])
    assert int(model[1].num_batches_tracked) == 0


def test_proofs_keep_the_running_statistics(points):
    model, (x, y) = network(), points
    reference = copy.deepcopy(model).eval()
    with clean_pass(copy.deepcopy(model), x), clean_pass(model, x):
        inside = IBP(THREAT).margins(model, x, y)
        own = ibp_margins(model, x, y, THREAT)
    reference.load_state_dict(model.state_dict())
    assert torch.equal(inside, ibp_margins(reference, x, y, THREAT))
    assert not torch.allclose(inside, own)
    assert torch.equal(ibp_margins(model, x, y, THREAT), inside)  # outside, as ever


class Twice(nn.Module):
    """One BatchNorm, called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(9, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        z = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.norm(self.second(z))))


def test_a_norm_that_is_called_twice_has_two_statistics():
    """At eps = 0 the bounds are the margins of the network in training mode."""
    model, x, y = Twice(), torch.rand(7, 9), torch.arange(7) % 3
    nothing = ThreatModel("Linf", eps=0.0)
    with clean_pass(model, x) as logits:
        found = ibp_margins(model, x, y, nothing)
        with pytest.raises(ValueError, match="'norm' is a BatchNorm that the network calls 2 time"):
            LiRPA(nothing, "IBP").bounds(model, x, y)
    assert torch.allclose(found, logits.gather(1, y[:, None]) - logits, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile, "compile()", "DDP"])
def test_wrappers_do_not_hide_the_statistics(points, wrap, tmp_path):
    model, (x, y) = network(), points
    wanted = certified(THREAT)(copy.deepcopy(model), x, y)
    if wrap == "compile()":
        model.compile(backend="eager")
        outer = model
    elif wrap == "DDP":
        file = f"file://{tmp_path}/store"
        torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
        outer = nn.parallel.DistributedDataParallel(model)
    else:
        outer = wrap(model) if wrap is not torch.compile else torch.compile(model, backend="eager")
    try:
        found = certified(THREAT)(outer, x, y)
        found.backward()
    finally:
        if wrap == "DDP":
            torch.distributed.destroy_process_group()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert int(model[1].num_batches_tracked) == 1


def test_through_masks(points):
    """The statistics are those of the pruned network, and their gradient reaches the scores."""
    model, (x, y) = network(), points
    pruner = HydraPruner(model, 0.5)
    pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1), epochs=1, steps_per_epoch=1)
    loss = certified(THREAT)(model, x, y)
    loss.backward()
    assert all(mask.scores.grad.abs().sum() > 0 for mask in pruner.masks)
    pruned = copy.deepcopy(model)
    finalize(pruned)
    tensors = {k: v.double() for k, v in pruned.state_dict().items()}
    wanted = by_hand(tensors, x.double(), y)[0]
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_norm_that_the_clean_pass_has_not_called_is_named():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last, self.skip = nn.BatchNorm1d(4), nn.Linear(4, 3), True

        def forward(self, x):
            return self.last(x if self.skip else self.norm(x))

    skips, z = Skips(), torch.rand(5, 4)
    with clean_pass(skips, z):
        skips.skip = False
        with pytest.raises(ValueError, match="'norm' is a BatchNorm .* called 0 times"):
            ibp_margins(skips, z, torch.zeros(5).long(), THREAT)


@pytest.mark.slow
def test_deep_networks_with_batchnorm_train():
    """Four convolutions on digits at eps = .1 (bounds by running statistics end near chance)."""
    data = load_data("digits")

    def tensors(part):
        pairs = [part[i] for i in range(len(part))]
        return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])

    layers, channels = [], 1
    for width, stride in ((16, 1), (16, 2), (32, 1), (32, 2)):
        conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    threat, (x, y) = ThreatModel("Linf", eps=0.1), tensors(data.train)
    objective, optimizer = certified(threat), torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = len(x) // 50
    for epoch in range(20):
        order = torch.randperm(len(x))
        for step in range(steps):
            objective.progress(epoch + step / steps, 20)
            rows = order[50 * step : 50 * step + 50]
            loss = objective(model, x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 8.0)
            optimizer.step()
    model.eval()
    x, y = tensors(data.test)
    assert (model(x).argmax(1) == y).float().mean() > 0.85
    assert IBP(threat)(model, x, y).float().mean() > 0.6


def test_a_batchnorm_that_is_called_by_keyword(batch):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.norm(input=x).flatten(1))

    x = batch[0]
    with clean_pass(model := Named(), x):
        mean, variance = statistics_of("norm", model.norm)
    torch.testing.assert_close(mean, x.mean().view(1))
    torch.testing.assert_close(variance, x.var(correction=0).view(1))
