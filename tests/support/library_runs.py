"""Runs of the AutoAttack library and of this package, to compare from the same noise."""

import contextlib

import pyautoattack
import torch
from torch import nn

from robust_plugin.attacks.survivors import AllFooled, Survivors

BALLS = [("Linf", 0.06), ("L2", 0.5)]


POINTS = 24


class Spied(nn.Module):
    """A network that keeps what it is asked for."""

    def __init__(self, shape=(3, 12, 12)):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1), nn.ELU(), nn.Flatten(), nn.LazyLinear(6)
        )
        self.net(torch.zeros(1, *shape))
        self.requires_grad_(False)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


def library(model, norm, eps):
    return pyautoattack.AutoAttack(model, norm=norm, eps=eps, version="standard", seed=0)


def asked(model, run):
    """The points that a run asks the network for, all of the batch at each call."""
    model.seen.clear()
    torch.manual_seed(7)
    with contextlib.suppress(AllFooled):
        run()
    return list(model.seen)


class Unfooled(Survivors):
    """A batch in which every point stands whatever the logits, so that both runs keep all rows."""

    def keep(self, rows, points, logits):
        return None


def distances(ours, theirs):
    assert len(ours) == len(theirs)
    return torch.stack([(a - b).abs().amax() for a, b in zip(ours, theirs, strict=True)])
