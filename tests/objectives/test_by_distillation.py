"""Distillation against its formula, point by point, and gradients against autograd by hand."""

import copy
import math

import pytest
import torch
from objective_formulas import sharp, softmax
from torch import nn
from torch.nn import functional as F
from unchanged import check_unchanged, snapshot

from robust_plugin import (
    Free,
    GradualPruner,
    ThreatModel,
    adversarial,
    benign,
    certified,
    distilled,
    gaussian,
    pgd,
    trades,
)

THREAT = ThreatModel("Linf", eps=0.05)


def halved(model, x, y):
    """An attack without random numbers, whose inputs a test can write down."""
    return 0.5 * x


@pytest.fixture
def points(batch):
    return batch[0].double(), batch[1]


@pytest.fixture
def teacher(cnn):
    model = cnn(seed=5).double()
    model[6].weight.data.mul_(20)
    return model


def mean_kl(teacher, student):
    """KL(T || f) from logits, point by point in Python."""
    total = 0.0
    for wanted, found in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = softmax(wanted), softmax(found)
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return total / len(teacher)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_benign_and_adversarial_equal_the_formula(cnn, points, teacher, weight):
    x, y = points
    for objective, inputs in ((benign, x), (adversarial(halved), 0.5 * x)):
        model, reference = sharp(cnn), sharp(cnn)
        loss = distilled(objective, teacher, weight=weight)(model, x, y)
        logits, wanted = reference(inputs), copy.deepcopy(teacher).eval()(inputs)
        hard = F.cross_entropy(logits, y)
        by_hand = (1 - weight) * hard.item() + weight * mean_kl(wanted, logits)
        assert loss.item() == pytest.approx(by_hand, abs=1e-9)
        p = wanted.softmax(1).detach()
        kl = (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
        loss.backward(), ((1 - weight) * hard + weight * kl).backward()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, atol=1e-10)
        # BatchNorm saw one batch, as without a teacher.
        for a, b in zip(model.buffers(), reference.buffers(), strict=True):
            assert torch.equal(a, b)


def test_trades_learns_from_the_teacher_on_clean_and_adversarial_inputs(cnn, points, teacher):
    x, y = points
    model, reference = sharp(cnn), sharp(cnn)
    objective = trades(THREAT, steps=3)
    torch.manual_seed(7)
    loss = distilled(objective, teacher, weight=0.4)(model, x, y)
    torch.manual_seed(7)
    seen = []
    handle = reference.register_forward_hook(
        lambda m, args, output: seen.append((args[0].detach(), output)) if m.training else None
    )
    plain = objective(reference, x, y)
    handle.remove()
    assert len(seen) == 2 and torch.equal(seen[0][0], x) and not torch.equal(seen[1][0], x)
    quiet = copy.deepcopy(teacher).eval()
    terms = [mean_kl(quiet(inputs), output) for inputs, output in seen]
    by_hand = 0.6 * plain.item() + 0.4 * sum(terms) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-9)
    loss.backward()
    kl = sum(
        F.kl_div(output.log_softmax(1), quiet(inputs).softmax(1).detach(), reduction="batchmean")
        for inputs, output in seen
    )
    (0.6 * plain + 0.4 * kl / 2).backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_computes_in_evaluation_mode_and_is_unchanged(cnn, batch, teacher, training):
    teacher.float().train(training)
    modes, grads = [], []

    def note(module, args, output):
        modes.append(module[1].training)
        grads.append(output.requires_grad)

    handle = teacher.register_forward_hook(note)
    before = snapshot(teacher)
    distilled(adversarial(pgd(THREAT, steps=3)), teacher)(cnn(), *batch).backward()
    assert (modes, grads) == ([False], [False])  # once, and not by the attack
    handle.remove()
    check_unchanged(teacher, before)  # also BatchNorm's statistics, and the mode
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("objective", "count"),
    [
        (benign, 1),
        (adversarial(pgd(THREAT, steps=4, restarts=2, keep="best")), 1),
        (trades(THREAT, steps=4), 2),
        (gaussian(sigma=0.1), 1),
        (Free(THREAT), 1),
        (certified(THREAT, kappa=(0.5, 0.5)), 1),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_passes_of_the_attack_are_not_counted(cnn, batch, teacher, objective, count, training):
    """The teacher sees exactly the inputs of the loss.

    In evaluation mode too, except those of Free, which require a gradient as those of attacks do.
    """
    model, seen = cnn().train(training), []
    if not training and isinstance(objective, Free):
        with pytest.raises(ValueError, match="passed no inputs"):
            distilled(objective, teacher.float())(model, *batch)
        return
    teacher.float().register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    distilled(objective, teacher)(model, *batch).backward()
    assert seen == [16] * count


def test_a_compiled_network_and_one_that_is_used_without_the_teacher_in_between(
    cnn, batch, teacher
):
    x, y = batch
    objective = distilled(adversarial(halved), teacher.float(), weight=0.5)
    plain = cnn().eval()
    wanted = objective(plain, x, y)
    wanted.backward()
    for in_place in (False, True):
        torch.compiler.reset()
        model = cnn().eval()
        compiled = model
        if in_place:
            model.compile(backend="eager")
        else:
            compiled = torch.compile(model, backend="eager")
        benign(compiled, x, y)  # compiles it without the hook that the teacher needs
        for _ in range(2):
            model.zero_grad()
            loss = objective(compiled, x, y)
            loss.backward()
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
            for a, b in zip(model.parameters(), plain.parameters(), strict=True):
                assert torch.allclose(a.grad, b.grad, atol=1e-7)
            benign(compiled, x, y)


def test_a_wrapped_network(cnn, batch, teacher):
    """DataParallel on the CPU calls the network itself; DDP is in test_by_perturbation.py."""
    x, y = batch
    objective = distilled(adversarial(halved), teacher.float())
    model = cnn().eval()
    loss = objective(nn.DataParallel(model), x, y)
    assert loss.item() == pytest.approx(objective(model, x, y).item(), rel=1e-6)


def test_the_dense_network_teaches_the_pruned_one(cnn, batch):
    """Through all phases of a pruner, with the copy that was made before it was attached."""
    x, y = batch
    model = cnn()
    dense = copy.deepcopy(model)
    objective = distilled(benign, dense, weight=1.0)
    pruner = GradualPruner(model, density=0.3)
    first = None
    epochs = {"shrink": 3, "prune": 2, "finetune": 8}
    for phase in pruner.phases(
        lambda params: torch.optim.Adam(params, lr=0.01), epochs=epochs, steps_per_epoch=4
    ):
        for _ in phase:
            for _ in range(4):
                phase.optimizer.zero_grad()
                loss = objective(model, x, y)
                loss.backward()
                phase.optimizer.step()
        first = loss.item() if first is None else first
    model.train()
    logits, wanted = model(x), dense.eval()(x)
    assert loss.item() < first  # the last phase is closer to the teacher than the first
    assert F.kl_div(logits.log_softmax(1), wanted.softmax(1), reduction="batchmean") < 0.05


def test_wrong_arguments(cnn, batch, teacher):
    model, (x, y) = cnn(), batch
    with pytest.raises(TypeError, match="model is a dict; give an nn.Module"):
        distilled(benign, dict(teacher.state_dict()))
    with pytest.raises(TypeError, match=r"objective is 'trades'; give a callable, as adversarial"):
        distilled("trades", teacher)
    for weight in (-0.1, 1.1, math.nan, "1", True):
        with pytest.raises(ValueError, match="legal: the share of the KL term, 0 to 1"):
            distilled(benign, teacher, weight=weight)
    for same in (model, nn.DataParallel(model)):
        with pytest.raises(ValueError, match=r"give a copy .*, copy.deepcopy\(model\)"):
            distilled(benign, model)(same, x, y)
    with pytest.raises(ValueError, match="the objective passed no inputs through the network"):
        distilled(lambda model, x, y: model[6].weight.square().sum(), teacher)(model, x, y)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match=r"shape \(16, 4\), those of the network \(16, 10\)"):
        distilled(benign, other)(model, x, y)
    pair = nn.Identity()
    pair.forward = lambda x: (x, x)
    with pytest.raises(TypeError, match="the teacher returned a tuple; legal: logits, a tensor"):
        distilled(benign, pair)(model, x, y)
    # Nothing of these calls is left on the network.
    assert not model._forward_hooks
