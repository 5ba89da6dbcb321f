"""Networks with a torch.autograd.Function, whose backward pass is not its forward pass's."""

import torch
from torch import nn
from torch.nn.utils import parametrize


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
