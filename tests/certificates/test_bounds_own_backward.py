"""Bounds of networks with a torch.autograd.Function: right, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from robust_plugin import IBP, ThreatModel, certified, ibp_margins
from robust_plugin.adapters.auto_lirpa import LiRPA

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


class Sign(torch.autograd.Function):
    """A quantiser of weights, its gradient straight through."""

    @staticmethod
    def forward(ctx, w):
        return w.sign() * 0.5

    @staticmethod
    def backward(ctx, grad):
        return grad


class Round(Sign):
    """A quantiser of activations."""

    @staticmethod
    def forward(ctx, w):
        return (w * 15).round() / 15


class Leaking(Sign):
    """A ReLU whose gradient is the identity's."""

    @staticmethod
    def forward(ctx, w):
        return w.relu()


class Straight(nn.Module):
    """A parametrization by ``Sign``."""

    def forward(self, w):
        return Sign.apply(w)


class By(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Scaled(nn.Module):
    """Features times quantised weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.alpha = nn.Linear(16, 8), nn.Linear(8, 4), torch.randn(8)
        self.alpha = nn.Parameter(self.alpha)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1)) * Sign.apply(self.alpha)))


class Binary(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, Sign.apply(self.weight), self.bias)


def around(function):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), By(function), nn.Linear(8, 4))


def binary():
    return nn.Sequential(Binary(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def parametrized():
    layer = nn.Linear(16, 8)
    parametrize.register_parametrization(layer, "weight", Straight())
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(8, 4))


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


@pytest.mark.parametrize("bounds", ["core", "IBP", "CROWN-IBP", "same-slope"])
def test_a_parametrization_keeps_its_own_backward_pass(points, bounds, highest_excess):
    """The gradient that reaches the weight is that of a plain network by its quantised weight."""
    x, y = points
    chosen = ibp_margins if bounds == "core" else LiRPA(THREAT, bounds).bounds
    model = parametrized()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        plain[1].weight.copy_(model[1].weight), plain[1].bias.copy_(model[1].bias)
        plain[3].load_state_dict(model[3].state_dict())
    found, wanted = (chosen(net, x, y, THREAT) for net in (model, plain))
    assert torch.allclose(found, wanted, atol=1e-6)
    F.cross_entropy(-found, y).backward(), F.cross_entropy(-wanted, y).backward()
    grad = model[1].parametrizations.weight.original.grad
    assert grad.abs().sum() > 0
    assert torch.allclose(grad, plain[1].weight.grad, atol=1e-6)
    assert parametrize.is_parametrized(model[1])
    assert highest_excess(model, x, y, THREAT, found) <= 0
    with torch.no_grad():  # the twin follows
        model[1].parametrizations.weight.original.mul_(-1)
        plain[1].weight.mul_(-1)
    assert torch.allclose(chosen(model, x, y, THREAT), chosen(plain, x, y, THREAT), atol=1e-6)


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])
def test_the_library_bounds_normalised_weights(points, wrap):
    model = nn.Sequential(nn.Flatten(), wrap(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()
    core = IBP(THREAT).margins(model, *points)
    assert torch.allclose(LiRPA(THREAT, "IBP").margins(model, *points), core, atol=1e-5)
