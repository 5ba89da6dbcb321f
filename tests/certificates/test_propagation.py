"""Propagation through whole networks, and what a trace does not show."""

import pytest
import torch
from own_backward import Leaking, Round, Scaled, around, binary, parametrized
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from robust_plugin import (
    IBP,
    HydraPruner,
    ThreatModel,
    certified,
    ibp_margins,
)
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.certificates import propagation as propagation_module
from robust_plugin.certificates.checks import proved
from robust_plugin.certificates.propagation import Propagation


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_single_layer_is_a_network(norm, masked):
    layer, threat = nn.Linear(12, 4), ThreatModel(norm, eps=0.1)
    x, y = torch.rand(5, 12), torch.tensor([0, 1, 2, 3, 0])
    if masked:
        HydraPruner(layer, 0.5)
    found = ibp_margins(layer, x, y, threat)
    torch.testing.assert_close(found, ibp_margins(nn.Sequential(layer), x, y, threat))
    assert torch.equal(IBP(threat)(layer, x, y), proved(found, y))
    found.sum().backward()
    assert any(p.grad is not None for p in layer.parameters())
    with pytest.raises(ValueError, match="is Softmax.*, of which there are no interval bounds"):
        ibp_margins(nn.Softmax(1), x, y, threat)


def test_a_box_clipped_to_the_batchs_own_range_would_be_caught(batch, highest_excess, monkeypatch):
    """As in the official code; where bounds are exact, the fuzz sees any clip that is too much."""
    model, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), batch[1]
    x, threat = 0.3 + 0.1 * batch[0], ThreatModel("Linf", eps=0.05)
    assert highest_excess(model, x, y, threat, ibp_margins(model, x, y, threat)) <= 0
    whole = propagation_module.input_set

    def clipped(x, threat):
        low, high = float(x.min()), float(x.max())
        return whole(x, ThreatModel("Linf", eps=threat.eps, low=low, high=high))

    monkeypatch.setattr(propagation_module, "input_set", clipped)
    assert highest_excess(model, x, y, threat, ibp_margins(model, x, y, threat)) > 0.01


def test_what_a_trace_does_not_see_is_refused(batch, threat):
    """Without the refusal each of these was proved wrongly: the worst margin is -.11."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.eye_(model[0].weight)
    x, y = torch.tensor([[0.7, 0.45]]), torch.tensor([0])
    assert IBP(threat)(model, x, y).item() == (2 * threat.eps < 0.25)
    hook = model[0].register_forward_hook(lambda m, args, out: out - torch.tensor([0.16, 0.0]))
    with pytest.raises(ValueError, match=r"layer '0' has a forward hook, .*<lambda>"):
        IBP(threat)(model, x, y)
    hook.remove()
    hook = model.register_forward_pre_hook(lambda m, args: (args[0] - 0.16,))
    with pytest.raises(ValueError, match="the model has a forward hook"):
        IBP(threat)(model, x, y)
    hook.remove()
    model.forward = lambda x: nn.Sequential.forward(model, x) - torch.tensor([0.16, 0.0])
    with pytest.raises(ValueError, match="the model has a forward of its own"):
        IBP(threat)(model, x, y)


def test_masks_of_torch_are_seen(cnn, batch, threat):
    model = cnn().eval()
    plain = IBP(threat).margins(model, *batch)
    prune.l1_unstructured(model[0], "weight", 0.5)
    masked = IBP(threat).margins(model, *batch)
    prune.remove(model[0], "weight")
    assert not torch.equal(masked, plain)
    assert torch.equal(masked, IBP(threat).margins(model, *batch))


def test_relu_inputs_come_with_the_batchnorm_before_them(cnn, batch, threat):
    model = cnn().eval()
    found = list(Propagation(model, batch[0], threat).relu_inputs())
    assert [gamma is None for _, gamma in found] == [False, True]
    assert found[0][1] is model[1].weight
    inside = model[1](model[0](batch[0]))
    assert ((found[0][0].lower <= inside) & (inside <= found[0][0].upper)).all()


class Calls(nn.Module):
    """A network with one call in its forward."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.last, self.call = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 10), call

    def forward(self, x):
        return self.last(self.call(self.conv(x)))


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.last, self.form = nn.Linear(64, 10), form

    def forward(self, x, scale=1.0):
        return self.form(self.last(x.flatten(1) * scale))


def test_an_option_is_at_its_default(batch, threat):
    model = Returns(torch.relu)
    plain = nn.Sequential(nn.Flatten(), model.last, nn.ReLU())
    assert torch.equal(ibp_margins(model, *batch, threat), ibp_margins(plain, *batch, threat))


class Twice(nn.Module):
    """An activation in place, of what the sum reads again."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.last, self.between = nn.Conv2d(1, 2, 1), nn.Linear(128, 10), between

    def forward(self, x):
        x = self.conv(x)
        return self.last((self.between(x) + x).flatten(1))


BAD = [
    (Calls(lambda v: v.flatten(1) if v.shape[0] else v), "cannot be traced"),
    (Calls(lambda v: v.flatten(1) if v.sum() > 0 else v), "cannot be traced"),
    (Returns(lambda v: {"logits": v}), "does not return"),
    (Returns(lambda v: (v, v)), "does not return"),
    (Twice(nn.Sequential(nn.Identity(), nn.ReLU(True))), "writes over a tensor that the network"),
    (Twice(lambda v: F.relu(v, True)), "writes over a tensor that the network"),
    (Twice(lambda v: v.relu_()), "writes over a tensor that the network"),
    (Twice(nn.ReLU(True)), "writes over a tensor that the network uses again"),
    (nn.Sequential(nn.Conv2d(1, 2, 3)), "does not return .batch, classes. logits"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_what_has_no_rule_raises_by_its_name(model, message, batch, threat):
    with pytest.raises(ValueError, match=message) as caught:
        ibp_margins(model, *batch, threat)
    assert str(caught.value).count("\n") <= 2


THREAT = ThreatModel("Linf", eps=0.02)


@pytest.mark.parametrize("bounds", [ibp_margins, LiRPA(THREAT).bounds], ids=["IBP", "CROWN-IBP"])
def test_a_backward_hook_is_refused_in_training_and_no_matter_in_proofs(cnn, batch, bounds):
    model, (x, y) = cnn().eval(), batch
    wanted = IBP(THREAT).margins(model, x, y)
    handle = model[3].register_full_backward_hook(lambda layer, ins, outs: (0 * ins[0],))
    with pytest.raises(ValueError, match="layer '3' has a backward hook, which the gradient of"):
        certified(THREAT, bounds=bounds, beta=(1.0, 1.0))(model, x, y)
    assert torch.equal(IBP(THREAT).margins(model, x, y), wanted)
    handle.remove()
    certified(THREAT, bounds=bounds, beta=(1.0, 1.0))(model, x, y).backward()


@pytest.fixture
def points():
    return torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("bounds", ["core", "CROWN-IBP", "same-slope"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Scaled, "Sign"),
        (binary, "Sign"),
        (lambda: around(Round), "Round"),
        (lambda: around(Leaking), "Leaking"),
    ],
)
def test_training_by_another_gradient_is_refused(points, make, name, bounds):
    x, y = points
    chosen = ibp_margins if bounds == "core" else LiRPA(THREAT, bounds).bounds
    message = f"{name} is a torch.autograd.Function with a backward pass of its own"
    if bounds != "core" and name != "Leaking":  # what has no bounds at all is refused as that
        message = f"{message}|no interval bounds|cannot bound this network"
    with pytest.raises(ValueError, match=message):
        certified(THREAT, bounds=chosen, beta=(1, 1))(make(), x, y)


@pytest.mark.parametrize("make", [Scaled, lambda: around(Leaking), parametrized])
def test_proofs_need_no_gradient(points, make, highest_excess):
    model, (x, _) = make().eval(), points
    y = model(x).argmax(1)
    assert highest_excess(model, x, y, THREAT, IBP(THREAT).margins(model, x, y)) <= 0
    nothing = ThreatModel("Linf", eps=0.0)
    logits = model(x)
    wanted = logits.gather(1, y[:, None]) - logits
    assert torch.allclose(IBP(nothing).margins(model, x, y), wanted, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: around(Round), binary])
def test_what_has_no_rule_is_refused_by_name(points, make):
    with pytest.raises(ValueError, match=r"operation '(round|conv2d)'"):
        IBP(THREAT).margins(make(), *points)
