"""Normalisation inside the model: the ball is that of pixels, for attacks and for bounds."""

import pytest
import torch
from torch import nn

from robust_plugin import Normalize, ThreatModel, guarded, ibp_margins, pgd
from robust_plugin.recipes import networks

MEAN, STD = (0.5, 0.25), (0.5, 0.2)


@pytest.fixture
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 4)).double()


def test_each_channel_is_shifted_and_scaled():
    x = torch.rand(5, 2, 3, 3)
    found = Normalize(MEAN, STD)(x)
    for channel in range(2):
        expected = (x[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(found[:, channel], expected)
    assert not list(Normalize(MEAN, STD).parameters())  # nothing to prune or to train
    assert list(Normalize(MEAN, STD).state_dict()) == ["mean", "std"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_bounds_are_of_the_ball_of_pixels(norm, network):
    """A normalised linear network is linear: its weights over std, its bias moved by the mean."""
    x, y = 0.3 + 0.4 * torch.rand(3, 2, 3, 3).double(), torch.tensor([0, 1, 3])
    layer, folded = network[1], nn.Linear(18, 4).double()
    scale = torch.tensor(STD).double().repeat_interleave(9)
    shift = torch.tensor(MEAN).double().repeat_interleave(9)
    folded.weight.data = layer.weight.data / scale
    folded.bias.data = layer.bias.data - folded.weight.data @ shift
    threat = ThreatModel(norm, eps=0.1)
    model = nn.Sequential(Normalize(MEAN, STD), network).double()
    expected = ibp_margins(nn.Sequential(nn.Flatten(), folded), x, y, threat)
    found = ibp_margins(model, x, y, threat)
    if norm == "Linf":
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    else:  # of the ellipsoid that the ball becomes, the box around it
        assert bool((found <= expected + 1e-6).all())


def test_attacks_stay_in_the_ball_of_pixels(network):
    x, threat = torch.rand(4, 2, 3, 3), ThreatModel("Linf", "8/255")
    model = nn.Sequential(Normalize(MEAN, STD), network.float())
    x_adv = guarded(pgd(threat, steps=5), threat)(model, x, torch.arange(4))
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    assert float((x_adv - x).abs().max()) == pytest.approx(threat.eps, rel=1e-4)


def test_bad_statistics_are_refused():
    with pytest.raises(ValueError, match="one number a channel in each"):
        Normalize((0.5, 0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="positive"):
        Normalize((0.5,), (0.0,))
    with pytest.raises(TypeError, match="one number a channel, as"):
        Normalize(0.5, 0.2)


def test_recipes_have_it_too():
    assert networks.Normalize is Normalize


def test_tensors_and_arrays_are_numbers_too():
    x = torch.rand(2, 3, 4, 4)
    wanted = Normalize((0.5, 0.25, 0.125), (0.25, 0.5, 2.0))(x)
    mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.25, 0.5, 2.0])
    for give in (lambda v: v, lambda v: v.numpy(), lambda v: v.tolist(), lambda v: v.view(3, 1)):
        assert torch.equal(Normalize(give(mean), give(std))(x), wanted)
    for wrong in (torch.tensor(0.5), torch.rand(3, 2), ["a", "b", "c"], None):
        with pytest.raises(TypeError, match="one number a channel"):
            Normalize(wrong, std)
