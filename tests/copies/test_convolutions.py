"""Shorter ways through a convolution against the convolution itself."""

import pytest
import torch
from torch import nn

from robust_plugin.copies.convolutions import cheaper


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
