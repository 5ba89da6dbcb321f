"""Shorter ways through a convolution against the convolution itself."""

import pytest
import torch
from torch import nn

from robust_plugin.copies.convolutions import Unrolled, cheaper, maps_seen, with_matrices


@pytest.mark.parametrize(
    ("layer", "side", "changed"),
    [
        (nn.Conv2d(1, 16, 4, stride=2, padding=1), 8, True),
        (nn.Conv2d(16, 32, 4, stride=2, padding=1), 4, True),
        (nn.Conv2d(8, 8, 3, padding=1, groups=4, padding_mode="reflect"), 4, False),
        (nn.Conv2d(3, 16, 3, stride=2, padding=1), 32, True),
        (nn.Conv2d(3, 6, (3, 5), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), 24, True),
        (nn.Conv2d(3, 6, 3, padding=1, bias=False), 24, True),
        (nn.Conv2d(3, 6, 3, padding="same"), 24, False),
        (nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), 24, False),
        (nn.Conv2d(3, 6, 3, groups=3), 24, False),
        (nn.Conv2d(64, 64, 3, padding=1), 16, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_the_same_and_the_same_gradient_by_the_input(layer, side, changed, dtype):
    layer = layer.to(dtype)
    x = torch.rand(5, layer.in_channels, side, side, dtype=dtype)
    short = cheaper(layer, x[:1])
    assert (short is not layer) == changed
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [each(z) for each, z in zip((layer, short), inputs, strict=True)]
    torch.testing.assert_close(outs[1], outs[0])
    grads = [torch.autograd.grad((out**2).sum(), z)[0] for out, z in zip(outs, inputs, strict=True)]
    torch.testing.assert_close(grads[1], grads[0])


def small_network():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.Flatten()
    )


def test_matrices_give_the_same_and_follow_the_weights():
    model, x = small_network(), torch.rand(5, 2, 5, 5)
    short, maps = with_matrices(model, x[:1])
    assert list(maps) == ["0", "2"] and maps["2"].shape == (1, 3, 5, 5)
    assert isinstance(short[0], Unrolled) and type(model[0]) is nn.Conv2d
    torch.testing.assert_close(short(x), model(x))
    with torch.no_grad():
        model[2].weight.mul_(-2)
    short[2].follow(model[2], maps["2"])
    torch.testing.assert_close(short(x), model(x))


def test_a_layer_that_is_called_twice_has_no_single_map():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.again, self.once = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.once(self.again(self.again(x)))

    model, x = Twice(), torch.rand(1, 2, 5, 5)
    seen = maps_seen(model, x)
    assert list(seen) == ["once"]
    torch.testing.assert_close(seen["once"], model.again(model.again(x)))
    assert not any(layer._forward_pre_hooks for layer in model.modules())
