"""Adversarial objectives against straightforward versions and explicit loops."""

import math

import pytest
import torch
from objective_formulas import sharp, softmax, trades_loss
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    Free,
    ThreatModel,
    adversarial,
    benign,
    mart,
    pgd,
    replay,
    trades,
)


@pytest.fixture
def inner(batch):
    """Pixels far from 0 and 1, so that the bounds bind nowhere and noise is all that matters."""
    return 0.3 + 0.4 * batch[0].double(), batch[1]


def mart_loss(clean, robust, y, beta):
    """BCE(f(x'), y) + beta KL(p || p') (1 - p_y), point by point."""
    total = 0.0
    for z, z_adv, label in zip(clean.tolist(), robust.tolist(), y.tolist(), strict=True):
        p, q = softmax(z), softmax(z_adv)
        runner_up = max(v for j, v in enumerate(q) if j != label)
        bce = -math.log(q[label]) - math.log(1.0001 - runner_up)
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        total += bce + beta * kl * (1 - p[label])
    return total / len(y)


def straightforward_attack(model, x, y, eps, steps, size, loss):
    """The official way: the reference is computed anew in every step."""
    model.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        if loss == "kl":
            value = nn.KLDivLoss(reduction="sum")(
                F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1)
            )
        else:
            value = F.cross_entropy(model(x_adv), y)
        grad = torch.autograd.grad(value, [x_adv])[0]
        x_adv = x_adv.detach() + size * torch.sign(grad.detach())
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    return x_adv.detach()


@pytest.mark.parametrize(
    ("make", "formula", "attack_loss"), [(trades, trades_loss, "kl"), (mart, mart_loss, "ce")]
)
@pytest.mark.parametrize("beta", [6.0, 1.0])
def test_equal_to_a_straightforward_version(cnn, inner, make, formula, attack_loss, beta):
    x, y = inner
    model, reference = sharp(cnn), sharp(cnn)
    objective = make(ThreatModel("Linf", eps=0.05), beta=beta, steps=10, step_size=0.0125)
    torch.manual_seed(7)
    loss = objective(model, x, y)
    torch.manual_seed(7)
    x_adv = straightforward_attack(reference, x, y, 0.05, 10, 0.0125, attack_loss)
    clean, robust = reference(x), reference(x_adv)
    assert loss.item() == pytest.approx(formula(clean, robust, y, beta), abs=1e-6)
    # Gradients, the clean branch not detached.
    p = F.softmax(clean, dim=1)
    kl = (p * (p.log() - F.log_softmax(robust, dim=1))).sum(1)
    if make is trades:
        wanted = F.cross_entropy(clean, y) + beta * kl.mean()
    else:
        q = F.softmax(robust, dim=1)
        others = torch.stack([q[i][torch.arange(10) != y[i]].max() for i in range(len(y))])
        own = p[torch.arange(len(y)), y]
        wanted = (
            F.nll_loss(q.log(), y) - (1.0001 - others).log().mean() + beta * (kl * (1 - own)).mean()
        )
    loss.backward(), wanted.backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)
    # BatchNorm saw the same two batches, clean first.
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(model[1], key), getattr(reference[1], key))


@pytest.mark.parametrize(
    ("objective", "attack", "loss"),
    [
        (trades, 11, 2),
        (mart, 10, 2),
        (lambda threat, steps: adversarial(pgd(threat, steps=steps)), 10, 1),
    ],
)
def test_forward_passes_and_batch_statistics(cnn, batch, threat, objective, attack, loss):
    """TRADES-10: 13 passes, not 24; only those of the loss run in training mode."""
    model, modes = cnn(), []
    model.register_forward_hook(lambda m, *_: modes.append(m.training))
    objective(threat, steps=10)(model, *batch).backward()
    assert modes == [False] * attack + [True] * loss
    assert int(model[1].num_batches_tracked) == loss
    assert all(p.grad is not None for p in model.parameters())


def test_benign_and_adversarial(cnn, batch, threat):
    x, y = batch
    model = cnn().eval()
    wanted = -model(x).log_softmax(1)[torch.arange(16), y].mean()
    assert benign(model, x, y).item() == pytest.approx(wanted.item(), rel=1e-6)
    shifted = adversarial(lambda m, x, y: x * 0.5)(model, x, y)
    assert shifted.item() == pytest.approx(benign(model, x * 0.5, y).item())
    torch.manual_seed(1)
    attacked = adversarial(pgd(threat, steps=5))(model, x, y)
    assert attacked.item() > benign(model, x, y).item()


def test_attacks_of_objectives_see_the_network_inside_a_wrapper(cnn, batch):
    model, seen = cnn(), []
    wrapped = nn.DataParallel(model)
    adversarial(lambda m, x, y: seen.append(m) or x)(wrapped, *batch)
    assert seen == [model]


@pytest.mark.parametrize(
    ("norm", "eps", "size"), [("Linf", 0.1, None), ("Linf", 0.1, 0.03), ("L2", 0.5, 0.2)]
)
def test_free_training_equals_an_explicit_loop(cnn, norm, eps, size):
    threat = ThreatModel(norm, eps=eps)
    batches = [(torch.rand(n, 1, 8, 8), torch.randint(10, (n,))) for n in (6, 8, 8, 3, 8)]
    model, reference = cnn(), cnn()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, reference)]
    objective = Free(threat, step_size=size)
    losses = []
    for x, y in replay(batches, 3):
        loss = objective(model, x, y)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        losses.append(loss.item())
    assert len(losses) == 15
    step = eps if size is None else size
    delta = torch.zeros(8, 1, 8, 8)
    for i, loss in enumerate(losses):
        x, y = batches[i // 3]
        n = len(x)
        leaf = delta[:n].clone().requires_grad_(True)
        wanted = F.cross_entropy(reference((x + leaf).clamp(0, 1)), y)
        optimizers[1].zero_grad()
        wanted.backward()
        optimizers[1].step()
        assert loss == pytest.approx(wanted.item(), rel=1e-5), i
        if norm == "Linf":
            delta[:n] = (delta[:n] + step * leaf.grad.sign()).clamp(-eps, eps)
        else:
            for j in range(n):
                moved = delta[j] + step * leaf.grad[j] / leaf.grad[j].norm()
                delta[j] = moved * min(1.0, eps / float(moved.norm()))
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_free_starts_anew_on_inputs_of_another_size(threat):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    objective = Free(threat)
    for side in (8, 6, 8):
        x, y = torch.rand(4, 1, side, side), torch.tensor([0, 1, 2, 0])
        loss = objective(model, x, y)
        assert loss.item() == pytest.approx(F.cross_entropy(model(x), y).item())
        loss.backward()


def test_free_ignores_the_gradients_of_a_skipped_step(cnn, batch, threat):
    objective, model = Free(threat), cnn()
    (objective(model, *batch) * torch.inf).backward()
    assert math.isfinite(objective(model, *batch).item())


def test_free_without_a_backward_pass_keeps_its_perturbation(cnn, batch, threat):
    objective, model = Free(threat), cnn().eval()
    objective(model, *batch).backward()
    with torch.no_grad():
        first = objective(model, *batch).item()
        assert objective(model, *batch).item() == first
    assert first > benign(model, *batch).item()


def test_replay():
    assert list(replay("ab", 3)) == list("aaabbb")
    with pytest.raises(ValueError, match="times is 0; legal: at least 1"):
        list(replay("ab", 0))


@pytest.mark.parametrize("make", [trades, mart])
def test_bad_options(threat, make):
    with pytest.raises(ValueError, match="steps is 0"):
        make(threat, steps=0)
    with pytest.raises(ValueError, match="'x/255'"):
        make(threat, step_size="x/255")


def test_benign_takes_probabilities(cnn, batch):
    """As after mixup: the sum of -p log softmax, row by row."""
    model, (x, y) = cnn().eval(), batch
    mixed = 0.3 * F.one_hot(y, 10).float() + 0.7 * F.one_hot(y.flip(0), 10).float()
    wanted = -(mixed * model(x).log_softmax(1)).sum(1).mean()
    assert benign(model, x, mixed).item() == pytest.approx(wanted.item(), rel=1e-6)
    for wrong in (mixed[:, :9], mixed[:5]):
        with pytest.raises(ValueError, match="(probabilities|labels) have shape"):
            benign(model, x, wrong)


def test_labels_of_pixels_are_torchs_own_and_some_may_be_ignored():
    model = nn.Conv2d(1, 4, 1)
    x, y = torch.rand(2, 1, 3, 3), torch.randint(4, (2, 3, 3))
    y[0, 0] = -100
    wanted = nn.functional.cross_entropy(model(x), y)
    assert torch.equal(benign(model, x, y), wanted)
