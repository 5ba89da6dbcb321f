"""PGD against its equations, closed forms and brute force."""

import itertools
import math

import pytest
import torch
from attack_formulas import attack_loss
from torch import nn
from torch.nn import functional as F

from robust_plugin import HydraPruner, ThreatModel, pgd
from robust_plugin.attacks.losses import margin_loss


def step_by_step(model, x, y, threat, steps, size, name, x_adv):
    """PGD as the papers write it, with its loss by torch's own functions."""
    model.eval()
    clean = model(x).detach()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        logits = model(x_adv)
        if name == "ce":
            loss = F.cross_entropy(logits, y, reduction="sum")
        elif name == "kl":
            loss = F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="sum")
        else:
            own = logits[torch.arange(len(y)), y]
            others = logits - 1e9 * F.one_hot(y, logits.shape[1])
            loss = others.max(1).values - own
            if name == "dlr":
                top = logits.topk(3, dim=1).values
                loss = loss / (top[:, 0] - top[:, 2])
            loss = loss.sum()
        loss.backward()
        with torch.no_grad():
            grad = x_adv.grad
            if threat.norm == "Linf":
                moved = x_adv + size * grad.sign()
                moved = torch.max(torch.min(moved, x + threat.eps), x - threat.eps)
            else:
                lengths = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = x_adv + size * grad / lengths - x
                lengths = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                moved = x + delta * torch.where(lengths > threat.eps, threat.eps / lengths, 1.0)
            x_adv = moved.clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("name", ["ce", "kl", "margin", "dlr"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.7)])
def test_equals_pgd_written_out(cnn, batch, name, norm, eps):
    x, y = batch
    model = cnn().double().eval()
    if name == "dlr":
        # Where the label ranks third the loss is exactly 1 and its gradient rounding noise: start
        # from labels that rank first, and stay near.
        y, eps = model(x.double()).argmax(1), eps / 20
    threat, size = ThreatModel(norm, eps=eps), eps / 2
    attack = pgd(threat, steps=5, step_size=size, loss=name, start="gaussian")
    torch.manual_seed(3)
    found = attack(model, x.double(), y)
    torch.manual_seed(3)
    start = x.double() + 1e-3 * torch.randn_like(x.double())
    wanted = step_by_step(model, x.double(), y, threat, 5, size, name, start.clamp(0, 1))
    assert torch.allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (loss, start)
        for loss in ("ce", "kl", "margin", "dlr")
        for start in ("uniform", "gaussian", "clean")
        if (loss, start) != ("kl", "clean")  # refused: no gradient there
    ],
)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("restarts", "keep"), [(1, "last"), (1, "best"), (3, "last")])
def test_ball_and_box(cnn, batch, loss, norm, start, restarts, keep):
    x, y = batch
    threat = ThreatModel(norm, eps=0.3)
    x_adv = pgd(threat, steps=3, loss=loss, start=start, restarts=restarts, keep=keep)(cnn(), x, y)
    assert x_adv.shape == x.shape and not x_adv.requires_grad and not torch.equal(x_adv, x)
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    delta = (x_adv - x).flatten(1).double()
    sizes = delta.abs().amax(1) if norm == "Linf" else delta.square().sum(1).sqrt()
    assert float(sizes.max()) <= 0.3 + 1e-6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_uniform_start_fills_the_ball(norm):
    threat = ThreatModel(norm, eps=0.5, low=-10, high=10)
    x = torch.zeros(20_000, 3)
    delta = pgd(threat)._first(x)
    if norm == "Linf":
        assert float(delta.abs().max()) <= 0.5 and float(delta.std()) == pytest.approx(
            0.5 / math.sqrt(3), rel=0.02
        )
    else:  # the share of a 3-ball within radius r eps is r^3
        radii = delta.norm(dim=1) / 0.5
        for r in (0.3, 0.5, 0.8):
            assert float((radii < r).float().mean()) == pytest.approx(r**3, abs=0.012)
        assert float(delta.mean(0).abs().max()) < 0.01


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "kl"])
def test_restarts_and_best_are_never_worse(cnn, batch, loss):
    x, y = batch
    threat = ThreatModel("Linf", eps=0.05)
    model = cnn().eval()
    with torch.no_grad():
        y = model(x).argmax(1)  # right clean, hard to move
    clean = model(x).detach()

    def outcome(**options):
        torch.manual_seed(5)
        logits = model(pgd(threat, steps=4, step_size=0.04, loss=loss, **options)(model, x, y))
        values = torch.tensor(attack_loss(loss, logits.detach(), y, clean))
        return logits.argmax(1) != y, values

    wrong, value = outcome()
    for options in ({"restarts": 4}, {"keep": "best"}, {"restarts": 4, "keep": "best"}):
        wrong_too, value_too = outcome(**options)
        assert bool((wrong_too | ~wrong).all())  # what one start fools, several fool
        still = ~wrong & ~wrong_too
        assert bool((value_too[still] >= value[still] - 1e-5).all())
    fooled, value = outcome(restarts=4, keep="best")
    assert int(fooled.sum()) >= int(wrong.sum())


def test_restarts_leave_fooled_points_alone(cnn, batch):
    x, _ = batch
    model, seen = cnn().eval(), []
    y = model(x).argmax(1)
    y[:10] = (y[:10] + 1) % 10  # wrong from the start
    model.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    pgd(ThreatModel("Linf", eps=1e-4), steps=2, restarts=3)(model, x, y)
    assert seen == [16, 16, 16] + [6, 6, 6] * 2
    seen.clear()
    pgd(ThreatModel("Linf", eps=1e-4), steps=2, restarts=3)(model, x[:10], y[:10])
    assert seen == [10, 10, 10]  # nothing left, no further start


def test_best_keeps_what_the_last_step_loses():
    """Steps that overshoot: the best iterate is misclassified, the last one is not."""

    class Well(nn.Module):
        def forward(self, x):  # wrong only within .01 of x = .6
            inside = 0.01 - (x[:, :1] - 0.6).abs()
            return torch.cat([torch.zeros_like(inside), inside * 10], 1)

    x, y = torch.full((1, 1), 0.495), torch.tensor([0])
    threat = ThreatModel("Linf", eps=0.2)
    options = {"step_size": 0.1, "start": "clean"}
    last = pgd(threat, steps=2, **options)(Well(), x, y)
    best = pgd(threat, steps=2, keep="best", **options)(Well(), x, y)
    model = Well()
    assert model(last).argmax(1).item() == 0 and model(best).argmax(1).item() == 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_reaches_the_worst_case_of_a_linear_model(norm):
    """For f = w x, the margin falls by eps |w_0 - w_1| in the dual norm, where no bound is hit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    x, y = torch.full((6, 12), 0.5) + 0.1 * torch.rand(6, 12), torch.tensor([0, 1] * 3)
    threat = ThreatModel(norm, eps=0.2)
    w = model[1].weight.detach()
    with torch.no_grad():
        before = margin_loss(model(x), y)
    gap = w[0] - w[1]
    gain = 0.2 * float(gap.abs().sum() if norm == "Linf" else gap.norm())
    for loss in ("ce", "margin"):
        x_adv = pgd(threat, steps=30, step_size=0.2, loss=loss)(model, x, y)
        with torch.no_grad():
            assert torch.allclose(margin_loss(model(x_adv), y), before + gain, atol=1e-5)
    # With bounds: Linf moves each pixel as far as box and ball let it.
    tight = ThreatModel("Linf", eps=0.2, low=0.4, high=0.62)
    x_adv = pgd(tight, steps=20)(model, x, y)
    sign = torch.where(y[:, None] == 0, -gap.sign(), gap.sign())
    assert torch.allclose(x_adv, (x + 0.2 * sign).clamp(0.4, 0.62), atol=1e-6)


def test_inside_a_pruned_model_attacks_leave_no_trace(cnn, batch, threat):
    model = cnn()
    pruner = HydraPruner(model, 0.1)
    pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
    model.eval()
    plain = cnn().eval()
    for i, mask in zip((0, 3, 6), pruner.masks, strict=True):
        plain[i].weight.data.mul_(mask.mask)
    torch.manual_seed(1)
    wanted = pgd(threat, steps=5)(plain, *batch)
    torch.manual_seed(1)
    assert torch.equal(pgd(threat, steps=5)(model, *batch), wanted)
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model(wanted), batch[1]).backward()
    assert all(mask.scores.grad is not None for mask in pruner.masks)


def test_draws_from_the_global_generator_and_never_reseeds(cnn, batch, threat):
    model = cnn()
    for attack in (pgd(threat, steps=1), pgd(threat, steps=1, restarts=2, keep="best")):
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            fresh = torch.rand(3)
            torch.manual_seed(seed)
            first, second = attack(model, *batch), attack(model, *batch)
            assert not torch.equal(first, second)
            after = torch.rand(3)
            assert not torch.equal(after, fresh)  # it drew, and did not go back
            runs.append((first, second, after))
        for a, b, other in zip(*runs, strict=True):
            assert torch.equal(a, b) and not torch.equal(a, other)


def test_runs_in_evaluation_mode(cnn, batch, threat):
    model, modes = cnn(), []
    model.register_forward_hook(lambda m, *_: modes.append((m.training, m[1].training)))
    pgd(threat, steps=4, loss="kl")(model, *batch)
    assert modes == [(False, False)] * 5 and model.training


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": "mse"}, "loss is 'mse'; legal: ce, kl, margin, dlr"),
        ({"start": "zero"}, "start is 'zero'; legal: uniform, gaussian, clean"),
        ({"keep": "first"}, "keep is 'first'; legal: last, best"),
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0; legal: at least 1"),
        ({"loss": "kl", "start": "clean"}, "no gradient at the clean point"),
        ({"step_size": "2/0"}, "'2/0'"),
        ({"step_size": -1}, "step_size is -1"),
    ],
)
def test_bad_options(threat, options, says):
    with pytest.raises(ValueError, match=says):
        pgd(threat, **options)


def test_dlr_needs_three_classes(threat):
    with pytest.raises(ValueError, match="needs at least three classes; take 'margin'"):
        pgd(threat, loss="dlr")(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(3, 4), torch.zeros(3).long()
        )


def test_names_and_defaults(threat):
    assert pgd(threat).name == "PGD-10"
    assert pgd(threat, steps=20, restarts=5, loss="margin").name == "PGD-20x5 margin"
    assert pgd(threat, steps=5).step_size == pytest.approx(2.5 * 0.1 / 5)
    assert pgd(threat, step_size="2/255").step_size == 2 / 255
    assert pgd(threat) == pgd(threat) and hash(pgd(threat)) == hash(pgd(threat))
    names = {
        pgd(threat, loss=a, restarts=b).name for a, b in itertools.product(["ce", "kl"], [1, 2])
    }
    assert len(names) == 4
