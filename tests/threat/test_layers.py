"""Normalisation inside the model: the ball is that of pixels, for attacks and for bounds."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from robust_plugin import Normalize, ThreatModel, guarded, ibp_margins, pgd
from robust_plugin.recipes.models.registry import build_model
from robust_plugin.threat.layers import UnitBox

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
    with pytest.raises(ValueError, match="one number per channel in each"):
        Normalize((0.5, 0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="positive"):
        Normalize((0.5,), (0.0,))
    with pytest.raises(TypeError, match="one number per channel, as"):
        Normalize(0.5, 0.2)
    for scalar in (torch.tensor(0.5), np.float32(0.5), None, "grey"):
        with pytest.raises(TypeError, match="one number per channel, as"):
            Normalize(scalar, (0.5,))
    with pytest.raises(ValueError, match=r"std has shape \(3, 3\); legal: \[C\] or"):
        Normalize((0.5, 0.5, 0.5), torch.eye(3))
    with pytest.raises(ValueError, match="every channel needs a finite number"):
        Normalize((0.5,), (math.nan,))


@pytest.mark.parametrize(
    "make",
    [
        torch.tensor,
        lambda values: torch.tensor(values, dtype=torch.float64),
        lambda values: torch.tensor(values).view(1, -1, 1, 1),
        np.array,
        lambda values: [np.float64(value) for value in values],
    ],
)
def test_statistics_of_any_kind_are_the_same_layer(make):
    x = torch.rand(5, 2, 3, 3)
    found = Normalize(make(MEAN), make(STD))(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Normalize(MEAN, STD)(x), rtol=0, atol=0)
    mean = torch.tensor(MEAN)
    layer = Normalize(mean, STD)
    mean.zero_()  # the caller's own
    torch.testing.assert_close(layer(x), found, rtol=0, atol=0)


def test_recipes_put_it_before_a_network():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    model = build_model("cnn-small", classes=10, shape=(3, 32, 32), mean=mean, std=std)
    assert type(model[0]) is Normalize
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model[0](x), Normalize(mean, std)(x), rtol=0, atol=0)


def test_the_numbers_lie_where_the_layers_weights_do():
    with torch.device("meta"):
        layer, weight = Normalize((0.5, 0.25), (1.0, 2.0)), nn.Linear(2, 2).weight
    assert layer.mean.device == layer.std.device == weight.device == torch.device("meta")


def test_a_radius_below_the_rounding_of_the_box_is_refused() -> None:
    x = torch.tensor([[1e6, 0.5], [-1e6, 0.2]])
    threat = ThreatModel("Linf", 0.1, low=-1e7, high=1e7)
    with pytest.raises(ValueError, match=r"rounds a radius of 0.1 away. Scale the features alike"):
        UnitBox(nn.Identity(), threat, x)
    UnitBox(nn.Identity(), threat, x.double())
