"""The unmasked copy, and gradients that flow back from it."""

import pytest
import torch
from own_backward import parametrized
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from robust_plugin import IBP, HydraPruner, ThreatModel, ibp_margins
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.certificates.plain_copy import PlainCopy

THREAT = ThreatModel("Linf", eps=0.02)


@pytest.fixture
def points():
    return torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 0])


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
    with torch.no_grad():  # the copy follows
        model[1].parametrizations.weight.original.mul_(-1)
        plain[1].weight.mul_(-1)
    assert torch.allclose(chosen(model, x, y, THREAT), chosen(plain, x, y, THREAT), atol=1e-6)


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])
def test_the_library_bounds_normalised_weights(points, wrap):
    model = nn.Sequential(nn.Flatten(), wrap(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()
    core = IBP(THREAT).margins(model, *points)
    assert torch.allclose(LiRPA(THREAT, "IBP").margins(model, *points), core, atol=1e-5)


def test_the_copy_computes_the_same_and_hands_its_gradients_to_masked_weights(cnn, batch):
    model, (x, y) = cnn().eval(), batch
    HydraPruner(model, 0.5)
    plain_copy = PlainCopy(model)
    assert not any(parametrize.is_parametrized(layer) for layer in plain_copy.network.modules())
    with torch.no_grad():  # the original changes after the copy was made
        for weight in model.parameters():
            weight.mul_(0.9)
    loss = plain_copy.following(model, lambda: F.cross_entropy(plain_copy.network(x), y))
    wanted = F.cross_entropy(model(x), y)
    torch.testing.assert_close(loss, wanted)
    leaves = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    expected = torch.autograd.grad(wanted, leaves, allow_unused=True)
    assert any(each is not None for each in expected)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert all(p.grad is None for p in model.parameters())
