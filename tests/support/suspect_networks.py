"""Networks on digits that train in a second, and layers whose gradients mislead attacks."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Act = Callable[[], nn.Module]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: float) -> Tensor:
        return (levels * x).round() / levels

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Quantiser(nn.Module):
    """Rounding to a number of levels, with the straight-through estimator as its gradient."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return _Round.apply(x, self.levels)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


class Sign(nn.Module):
    """The sign as a binary activation, with the gradient of hard tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return _Sign.apply(x)


def quantised_relu() -> nn.Module:
    return nn.Sequential(nn.ReLU(), Quantiser(15))


def mlp(act: Act = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), act(), nn.Linear(48, 10))


def cnn(act: Act = nn.ReLU, channels: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, stride=2, padding=1),
        act(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def normed_cnn(act: Act = nn.ReLU, *, statistics: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12, track_running_stats=statistics),
        act(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.BatchNorm2d(16, track_running_stats=statistics),
        act(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


HONEST: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "normed cnn": normed_cnn}


def digits(n: int) -> tuple[Tensor, Tensor]:
    """Return the last n digits; ``trained`` does not train on the last 400."""
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return x[-n:], torch.tensor(found.target)[-n:]


_KNOWN: dict[str, nn.Module] = {}


def trained(name: str, build: Callable[[], nn.Module], epochs: int = 8) -> nn.Module:
    """Return a trained network in evaluation mode; each name is trained once per process."""
    if name in _KNOWN:
        return _KNOWN[name]
    x, y = digits(1797)
    x, y = x[:-400], y[:-400]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    _KNOWN[name] = model.eval()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in per cent."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).double().mean())
