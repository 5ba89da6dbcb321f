"""The guard around attacks: what it restores, and what it refuses."""

import pytest
import torch
from torch import nn

from robust_plugin import ThreatModel, guarded, pgd
from robust_plugin.attacks.logits import check_logits


def frozen_model(cnn):
    """A model with everything that a careless attack would disturb."""
    model = cnn()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[6].weight.grad = torch.full_like(model[6].weight, 7.0)
    return model


def flags(model):
    return (
        [layer.training for layer in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        {k: v.clone() for k, v in model.state_dict().items()},
    )


def check_same(model, before):
    now = flags(model)
    assert now[:2] == before[:2]
    for a, b in zip(now[2], before[2], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a[0] == b[0] and torch.equal(a[1], b[1]))
    assert all(torch.equal(v, before[3][k]) for k, v in now[3].items())


def careless(model, x, y):
    """Does everything an attack must not: trains, switches modes, sets flags, leaves gradients."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    x = x.clone().requires_grad_(True)
    model[6](model[5](x.repeat(1, 2, 1, 1))).sum().backward()
    return x + 0.01 * x.grad.sign()


@pytest.mark.parametrize("attack", ["pgd", "careless", "raises"])
def test_guard_restores_everything(cnn, batch, attack):
    x, y = torch.full_like(batch[0], 0.5), batch[1]
    threat = ThreatModel("Linf", eps=0.1)
    model = frozen_model(cnn)
    before = flags(model)

    def raises(model, x, y):
        careless(model, x, y)
        raise KeyError("inside")

    run = {"pgd": pgd(threat, steps=2), "careless": guarded(careless, threat)}.get(attack)
    if attack == "raises":
        with pytest.raises(KeyError, match="inside"):
            guarded(raises, threat)(model, x, y)
    else:
        run(model, x, y)
    check_same(model, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attacks_anywhere(cnn, batch, mode):
    threat = ThreatModel("Linf", eps=0.1)
    model = frozen_model(cnn)
    torch.manual_seed(2)
    wanted = pgd(threat, steps=3)(model, *batch)
    before = flags(model)
    with mode():
        x, y = batch[0] * 1, batch[1] * 1  # inference tensors where it is inference mode
        torch.manual_seed(2)
        found = pgd(threat, steps=3)(model, x, y)
        torch.manual_seed(2)
        with_restarts = pgd(threat, steps=3, restarts=2, keep="best")(model, x, y)
    assert torch.equal(found, wanted)
    assert with_restarts.shape == x.shape
    check_same(model, before)


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.linear, self.what = nn.Linear(64, 10), what

    def forward(self, x):
        return self.what(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (
            Returns(lambda z: (z, z)),
            TypeError,
            "returned a tuple; give a model that returns logits",
        ),
        (Returns(lambda z: {"out": z}), TypeError, "returned a dict"),
        (Returns(lambda z: z * torch.nan), ValueError, "logits that are not finite"),
        (Returns(lambda z: z / 0), ValueError, "logits that are not finite"),
        (Returns(lambda z: z[:3]), ValueError, r"shape \(3, 10\) for 16 labels; legal"),
        (Returns(lambda z: z[:, 0]), ValueError, r"shape \(16,\)"),
        (
            Returns(lambda z: z[:, :2]),
            ValueError,
            "labels are torch.int64 from 0 to 8; legal: integers 0 to 1",
        ),
    ],
)
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_models_that_return_something_else(batch, threat, model, kind, says, loss):
    before = flags(model)
    with pytest.raises(kind, match=says):
        pgd(threat, loss=loss)(model, *batch)
    check_same(model, before)


def test_bad_labels_and_inputs(cnn, batch, threat):
    x, y = batch
    model = cnn()
    before = flags(model)
    for labels in (y + 5, y - 3, y.float()):
        with pytest.raises(ValueError, match="legal: integers 0 to 9, the model has 10 classes"):
            pgd(threat)(model, x, labels)
    for inputs in (x * 2, x - 0.5, (x * 255).to(torch.uint8), x * torch.nan):
        with pytest.raises(ValueError, match="inputs"):
            pgd(threat)(model, inputs, y)
    with pytest.raises(ValueError, match=r"labels have shape \(5,\)"):
        pgd(threat)(model, x, y[:5])
    check_same(model, before)
    assert check_logits(torch.zeros(2, 3), torch.tensor([0, 2])).shape == (2, 3)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda m, x, y: x + 0.2, "moved a point by 0.2"),
        (lambda m, x, y: x * torch.nan, "NaN or infinite"),
        (lambda m, x, y: x[:3], r"shape \(3, 1, 8, 8\) for inputs of \(16, 1, 8, 8\)"),
        (lambda m, x, y: x.flatten(1), r"shape \(16, 64\)"),
        (lambda m, x, y: torch.full_like(x, torch.inf), "inf"),
    ],
)
def test_attacks_that_break_the_contract(cnn, threat, broken, says):
    model = frozen_model(cnn)
    before = flags(model)
    x = torch.full((16, 1, 8, 8), 0.4)
    with pytest.raises(ValueError, match=says):
        guarded(broken, threat)(model, x, torch.zeros(16).long())
    check_same(model, before)


def test_an_attack_outside_the_box(cnn):
    threat, x = ThreatModel("Linf", eps=0.5), torch.full((4, 1, 8, 8), 0.9)
    with pytest.raises(ValueError, match="outside the threat model"):
        guarded(lambda m, x, y: x + 0.2, threat)(cnn(), x, torch.zeros(4).long())


def test_guard_runs_on_the_network_inside_a_wrapper(cnn, batch, threat):
    model, seen = cnn(), []
    guarded(lambda m, x, y: seen.append(m) or x, threat)(nn.DataParallel(model), *batch)
    assert seen == [model]


def test_an_attack_that_works_in_place_is_judged_by_the_clean_points(threat, batch, cnn):
    x, y = batch
    before = x.clone()

    def in_place(model, x, y):
        return x.add_(0.3).clamp_(0, 1)

    with pytest.raises(ValueError, match="moved a point by 0.3"):
        guarded(in_place, threat)(cnn(), x, y)
    assert torch.equal(x, before)


def test_statistics_that_an_attack_moved_come_back(threat, batch, cnn):
    x, y = batch
    model = cnn()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def in_training_mode(model, x, y):
        model.train()
        model(x)
        return x

    guarded(in_training_mode, threat)(model, x, y)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_an_attack_that_writes_to_a_weight_is_named(threat, batch, cnn):
    x, y = batch

    def writes(model, x, y):
        with torch.no_grad():
            model[6].bias.add_(1)
        return x

    with pytest.raises(ValueError, match=r"wrote to the parameter 6\.bias"):
        guarded(writes, threat)(cnn(), x, y)


def test_results_and_labels_of_the_wrong_kind(threat, batch, cnn):
    x, y = batch
    model = cnn()
    with pytest.raises(TypeError, match="the attack returned a NoneType"):
        guarded(lambda model, x, y: None, threat)(model, x, y)
    with pytest.raises(ValueError, match=r"the attack returned values from .* to 1\.5"):
        guarded(lambda model, x, y: x * 0 + 1.5, threat)(model, x, y)
    with pytest.raises(ValueError, match=r"labels have shape \(16, 10\)"):
        pgd(threat, steps=1)(model, x, torch.nn.functional.one_hot(y, 10))
    assert pgd(threat, steps=1)(model, x, y.int()).shape == x.shape
    with pytest.raises(TypeError, match="give a ThreatModel"):
        pgd("Linf")
    with pytest.raises(ValueError, match=r"steps is 1\.5"):
        pgd(threat, steps=1.5)
