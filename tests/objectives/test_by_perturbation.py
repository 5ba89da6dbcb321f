"""AWP and S2AP against steps that are computed by hand."""

import copy
import math

import pytest
import torch
from forked import Forked
from learned_steps import batch_of, network
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    GradualPruner,
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    ThreatModel,
    adversarial,
    benign,
    distilled,
    mart,
    perturbed,
    pgd,
    smoothadv,
    trades,
)

THREAT = ThreatModel("Linf", eps=0.1)
GAMMA = 0.05


def halved(model, x, y):
    return 0.5 * x


def weights_of(model):
    return [p for p in model.parameters() if p.dim() > 1]


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same(model, before):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def official_awp(model, loss_of, gamma):
    """The official code's way: a proxy takes the ascent step, and the model w + v the loss.

    Returns the loss, the gradients and the buffers after it.
    """
    proxy, model = copy.deepcopy(model), copy.deepcopy(model)
    loss_of(proxy).backward()
    with torch.no_grad():
        for w, p in zip(weights_of(model), weights_of(proxy), strict=True):
            w.add_(gamma * w.norm() * p.grad / p.grad.norm())
    loss = loss_of(model)
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("training", [True, False])
def test_equal_to_the_official_steps_by_hand(cnn, batch, training):
    """Value, gradient, BatchNorm's statistics (of the second pass alone) and parameters."""
    x, y = batch[0].double(), batch[1]
    model = cnn().double().train(training)
    before = bits(model)
    value, grads, buffers = official_awp(model, lambda m: F.cross_entropy(m(0.5 * x), y), GAMMA)
    loss = perturbed(adversarial(halved), gamma=GAMMA)(model, x, y)
    assert same(model, before)
    assert loss.item() == pytest.approx(value, abs=1e-12)
    assert loss.item() > F.cross_entropy(model.eval()(0.5 * x), y).item() or training
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.allclose(parameter.grad, grad, atol=1e-12)
    for a, b in zip(model.buffers(), buffers, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert int(model[1].num_batches_tracked) == int(training)
    assert same(model, before)


def test_gamma_zero_is_the_plain_objective(cnn, batch):
    model, reference = cnn(), cnn()
    results = []
    for each, objective in (
        (model, perturbed(trades(THREAT, steps=2), gamma=0.0)),
        (reference, trades(THREAT, steps=2)),
    ):
        torch.manual_seed(3)
        loss = objective(each, *batch)
        loss.backward()
        results.append(loss.item())
    assert results[0] == results[1]
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [trades, mart, lambda t, steps: adversarial(pgd(t, steps=steps))])
def test_the_attack_runs_once_and_both_losses_are_of_the_same_inputs(cnn, batch, make):
    model, seen = cnn(), []
    model.register_forward_hook(lambda m, args, out: seen.append((m.training, args[0].detach())))
    make(THREAT, steps=4)(model, *batch)
    plain = [training for training, _ in seen]
    seen.clear()
    perturbed(make(THREAT, steps=4), gamma=GAMMA)(model, *batch)
    attacks, losses = (sum(t is which for t, _ in seen) for which in (False, True))
    assert (attacks, losses) == (plain.count(False), 2 * plain.count(True))
    inputs = [x for training, x in seen if training]
    half = len(inputs) // 2
    assert all(torch.equal(a, b) for a, b in zip(inputs[:half], inputs[half:], strict=True))
    assert not torch.equal(inputs[-1], batch[0])


def test_a_teacher_is_asked_at_the_worst_weights(cnn, batch):
    x, y = batch[0].double(), batch[1]
    model, teacher = cnn().double(), cnn(seed=4).double().eval()

    def loss_of(network):
        logits = network(0.5 * x)
        wanted = teacher(0.5 * x).softmax(1).detach()
        kl = F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * kl

    value, grads, _ = official_awp(model, loss_of, GAMMA)
    loss = perturbed(distilled(adversarial(halved), teacher), gamma=GAMMA)(model, x, y)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-12)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.allclose(parameter.grad, grad, atol=1e-12)


@pytest.mark.parametrize("phase", ["finetune", "shrink"])
def test_pruned_weights_are_not_perturbed_and_the_norm_is_of_the_kept(cnn, batch, phase):
    """Against AWP on the plain network with zeros, whose gradients are masked by hand."""
    x, y = batch[0].double(), batch[1]
    model = cnn().double()
    if phase == "finetune":
        pruner = MagnitudePruner(model, 0.2)
        optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=0.1, momentum=0.9)
    else:
        pruner = MagnitudePruner(model, 0.2, schedule=lambda passed, k: 1.0 if passed < 0.4 else k)
        optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=0.1, momentum=0.9)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=5)
    for _ in range(4):  # in the shrink phase, momentum moves weights that are pruned on the way
        optimizer.zero_grad()
        benign(model, x, y).backward()
        optimizer.step()
    plain = copy.deepcopy(model)
    with torch.no_grad():
        kept = [mask.mask.clone() for mask in pruner.masks]
        stored = [p for p in weights_of(plain) if p.requires_grad]
        for weight, mask in zip(stored, kept, strict=True):
            weight.mul_(mask)
    proxy = copy.deepcopy(plain)
    proxy.zero_grad()
    benign(proxy, x, y).backward()
    with torch.no_grad():
        for w, p, mask in zip(stored, weights_of(proxy), kept, strict=True):
            grad = p.grad * mask
            w.add_(GAMMA * w.norm() * grad / grad.norm())
    plain.zero_grad()
    wanted = benign(plain, x, y)
    wanted.backward()
    optimizer.zero_grad()
    seen = []
    handle = model.register_forward_hook(
        lambda *_: seen.append([p.detach().clone() for p in weights_of(model)])
    )
    loss = perturbed(benign, gamma=GAMMA)(model, x, y)
    handle.remove()
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-12)
    for first, second, mask in zip(*seen, kept, strict=True):
        assert not first[~mask].any() and not second[~mask].any()
        assert (second - first).norm() == pytest.approx(GAMMA * first.norm().item(), rel=1e-9)


def hand_made_masks(scores, counts):
    chosen = []
    for s, count in zip(scores, counts, strict=True):
        order = s.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(order.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        chosen.append(mask.view_as(s))
    return chosen


@pytest.mark.parametrize("kind", ["hydra", "harp", "gradual"])
def test_scores_are_perturbed_and_masks_chosen_anew_and_then_back(cnn, batch, kind):
    """S2AP: the loss and the gradient of the scores are those under the masks of s + z."""
    x, y = batch
    model = cnn()
    make = {"hydra": HydraPruner, "harp": HarpPruner, "gradual": GradualPruner}[kind]
    pruner = make(model, 0.2)
    if kind == "gradual":
        optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=0.01)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
        for _ in range(3):
            optimizer.zero_grad()
            benign(model, x, y).backward()
            optimizer.step()
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=5)
    scores = [mask.scores for mask in pruner.masks]
    before = [s.detach().clone() for s in scores]
    masks, weights = [mask.mask.clone() for mask in pruner.masks], bits(model)
    counts = [mask.kept for mask in pruner.masks]

    # By hand: the gradient at s, the step along it, the masks of the moved scores.
    gamma = 0.5  # large, so that masks move
    benign(model, x, y).backward()
    moved = []
    for s in scores:
        step = gamma * s.detach().norm() * s.grad / s.grad.norm()
        moved.append(s.detach() + step)
        s.grad = None
    chosen = hand_made_masks(moved, counts)
    assert any((a != b).any() for a, b in zip(chosen, masks, strict=True))
    plain = cnn()  # its weights are w times the masks of s + z
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n in plain.state_dict()})
    layers = [plain[0], plain[3], plain[6]]
    stored = [layer.weight.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer, weight, mask in zip(layers, stored, chosen, strict=True):
            layer.weight.copy_(weight * mask)
    wanted = benign(plain, x, y)
    wanted.backward()
    model.zero_grad()
    recorded = []
    handle = model.register_forward_hook(
        lambda *_: recorded.append([mask.mask.clone() for mask in pruner.masks])
    )
    loss = perturbed(benign, gamma=gamma)(model, x, y)
    handle.remove()
    assert len(recorded) == 2
    assert all(torch.equal(a, b) for a, b in zip(recorded[0], masks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(recorded[1], chosen, strict=True))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert all(torch.equal(s, b) for s, b in zip(scores, before, strict=True))
    assert all(torch.equal(m.mask, b) for m, b in zip(pruner.masks, masks, strict=True))
    assert same(model, weights)
    # The gradient of the scores is sign(s + z) dL/dm at the new masks (straight through).
    loss.backward()
    for layer, weight, score, value in zip(layers, stored, scores, moved, strict=True):
        assert torch.allclose(score.grad, value.sign() * weight * layer.weight.grad, atol=1e-7)
    optimizer.step()
    assert pruner.steps.step == 1


def test_scores_of_channels_are_perturbed_too(cnn, batch):
    model = cnn()
    member = Member(model[6], "6", "weight", dim=1, index=torch.arange(128) // 16)
    pruner = HydraPruner(model, 0.5, groups=[Group((member,), channels=8)])
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    (mask,) = pruner.masks
    before, scores = mask.mask.clone(), mask.scores.detach().clone()
    benign(model, *batch).backward()
    step = 2.0 * scores.norm() * mask.scores.grad / mask.scores.grad.norm()
    (wanted,) = hand_made_masks([scores + step], [4])
    assert (wanted != before).any()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(mask.mask.clone()))
    perturbed(benign, gamma=2.0)(model, *batch)
    assert torch.equal(seen[0], before) and torch.equal(seen[1], wanted)
    assert torch.equal(mask.mask, before) and torch.equal(mask.scores, scores)


def test_a_compiled_network_sees_the_masks_of_the_moved_scores(cnn, batch):
    losses = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = cnn()
        pruner = HydraPruner(model, 0.2)
        pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
        outer = torch.compile(model, backend="eager") if compiled else model
        losses += [perturbed(benign, gamma=gamma)(outer, *batch).item() for gamma in (0.0, 0.5)]
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)
    assert losses[3] == pytest.approx(losses[1], rel=1e-6)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_an_exception_in_the_second_pass_restores_the_weights(cnn, batch):
    model, calls = cnn(), []
    before = bits(model)

    def fails(model, x, y):
        calls.append([p.detach().clone() for p in weights_of(model)])
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return benign(model, x, y)

    with pytest.raises(RuntimeError, match="out of memory"):
        perturbed(fails, gamma=GAMMA)(model, *batch)
    assert not any(torch.equal(a, b) for a, b in zip(*calls, strict=True))
    assert same(model, before)
    benign(model, *batch)
    # And the next objective finds inputs of its own.
    runs = []
    adversarial(lambda m, x, y: runs.append(1) or x)(model, *batch)
    assert runs == [1]


def test_scaled_losses_and_a_grad_scaler(cnn, batch):
    """Gradients are linear in what the loss is multiplied by, and add up over losses."""
    model = cnn()
    objective = perturbed(adversarial(halved), gamma=GAMMA)
    loss = objective(model.eval(), *batch)
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(objective(model, *batch)).backward()
    assert all(
        torch.equal(p.grad, 1024 * g) for p, g in zip(model.parameters(), grads, strict=True)
    )
    before = bits(model)
    scaler.step(optimizer)
    scaler.update()
    for p, b, g in zip(model.parameters(), before, grads, strict=True):
        assert torch.allclose(p, b - 0.1 * g, atol=1e-7)
    model.zero_grad()
    (objective(model, *batch) + 3 * objective(model, *batch)).backward()
    single = torch.autograd.grad(objective(model, *batch), list(model.parameters()))
    for p, g in zip(model.parameters(), single, strict=True):
        assert torch.allclose(p.grad, 4 * g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("phase", ["weights", "scores"])
def test_gradients_that_overflow_move_nothing(cnn, batch, phase):
    """Their step is skipped by a GradScaler."""
    model, seen = cnn(), []
    if phase == "scores":
        pruner = HydraPruner(model, 0.2)
        pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
    before = bits(model)

    def overflows(m, x, y):
        seen.append(same(model, before))
        return benign(m, x, y) * torch.inf

    loss = perturbed(overflows, gamma=GAMMA)(model, *batch)
    assert seen == [True, True] and same(model, before) and not math.isfinite(loss.item())


def test_without_gradients_it_is_the_plain_value(cnn, batch):
    model = cnn().eval()
    with torch.no_grad():
        loss = perturbed(benign, gamma=GAMMA)(model, *batch)
    assert loss.item() == benign(model, *batch).item() and not loss.requires_grad


def test_frozen_parameters_and_those_without_a_gradient(cnn, batch):
    model = cnn()
    model.extra = nn.Linear(3, 3)  # not used in the forward pass of the objective
    model[0].weight.requires_grad_(False)
    frozen, seen = model[0].weight.detach().clone(), []

    def objective(m, x, y):
        seen.append(m[0].weight.detach().clone())
        return F.cross_entropy(m[6](m[:6](x)), y)

    perturbed(objective, gamma=GAMMA)(model, *batch).backward()
    assert torch.equal(seen[1], frozen) and model[0].weight.grad is None
    assert model.extra.weight.grad is None and model[6].weight.grad is not None


def test_objectives_with_noise(cnn, batch):
    """They draw it anew for the second loss, and train."""
    objective = perturbed(smoothadv(ThreatModel("L2", eps=0.5), sigma=0.1, steps=2), gamma=0.01)
    model = cnn()
    before = bits(model)
    objective(model, *batch).backward()
    assert same(model, before) and all(p.grad is not None for p in model.parameters())


def test_wrong_arguments(cnn, batch):
    with pytest.raises(TypeError, match="objective is 3; give a callable, as adversarial"):
        perturbed(3, gamma=0.1)
    for gamma in (-0.1, math.nan, "0.1", True):
        with pytest.raises(ValueError, match=r"legal: at least 0, such as 0.005"):
            perturbed(benign, gamma=gamma)
    model = cnn()
    pruner = HarpPruner(model, 0.2, learn=("rates",))
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=5)
    with pytest.raises(ValueError, match="trains no weights of two or more dimensions and no scor"):
        perturbed(benign, gamma=0.1)(model, *batch)


# --- two processes ------------------------------------------------------------------------------


def trained(rank, world, kind):
    """Three steps of AWP, or of S2AP, on parts of each batch, of which the second rank has more."""
    model = network(batch_norm=False, dtype=torch.float64)
    if kind == "scores":
        pruner = HydraPruner(model, 0.2)
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0)
        pruner.follow(optimizer)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    outer = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    teacher = network(batch_norm=False, dtype=torch.float64).eval()
    objective = perturbed(distilled(adversarial(halved), teacher, weight=0.3), gamma=0.1)
    for step in range(3):
        x, y = batch_of(step, 16, torch.float64)
        if world > 1:
            x, y = (part[:8] if rank == 0 else part[8:] for part in (x, y))
        optimizer.zero_grad()
        objective(outer, x, y).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def direction(rank, world):
    """The step of AWP for 4 + 12 points, of which each process computes its part."""
    model = network(batch_norm=False, dtype=torch.float64)
    x, y = batch_of(0, 16, torch.float64)
    if world > 1:
        x, y = (part[:4] if rank == 0 else part[4:] for part in (x, y))
    seen = []

    def noting(m, x, y):
        seen.append([p.detach().clone() for p in m.parameters()])
        return benign(m, x, y)

    perturbed(noting, gamma=0.1)(model, x, y)
    return [b - a for a, b in zip(*seen, strict=True)]


def process(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    found = {kind: trained(rank, 2, kind) for kind in ("weights", "scores")}
    found["direction"] = direction(rank, 2)
    torch.save(found, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    processes = [Forked(process, rank, str(tmp_path)) for rank in range(2)]
    for each in processes:
        assert each.wait(60) == 0, each.communicate()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = {kind: trained(0, 1, kind) for kind in ("weights", "scores")}
    alone["direction"] = direction(0, 1)
    for kind, values in alone.items():
        for a, b, c in zip(first[kind], second[kind], values, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(a, c, atol=1e-10)
