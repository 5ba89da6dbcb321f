"""Pruned networks and layers for the tests of sparse export."""

import torch
from torch import nn
from torch.nn import functional as F


def pruned(layer, kept=0.05):
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < kept)
    return layer.eval().requires_grad_(False)


class Residual(nn.Module):
    """A layer used twice, one under two names, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.conv = pruned(nn.Conv2d(16, 16, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(16)
        self.again = self.conv
        self.unused = pruned(nn.Linear(16, 16))
        self.head = pruned(nn.Linear(16, 8))

    def forward(self, x):
        x = x + F.relu(self.norm(self.conv(x)))
        return self.head((x + self.again(x)).mean((2, 3)))


def network(*middle):
    torch.manual_seed(0)
    first, second = pruned(nn.Conv2d(3, 8, 3), 0.2), pruned(nn.Linear(8 * 36, 5), 0.2)
    return nn.Sequential(first, *middle, nn.Flatten(), second).eval()


def input_gradient(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    (grad,) = torch.autograd.grad((out * torch.arange(out.shape[1])).sum(), x)
    return grad


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
