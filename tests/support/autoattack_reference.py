"""The library's own standard evaluation, to compare with, and a small network for it."""

from collections.abc import Callable
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from robust_plugin import ThreatModel

Trained = Callable[[int], tuple[nn.Module, Tensor, Tensor]]


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def by_the_library(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, batch_size: int = 250
) -> Tensor:
    """The library as its readme runs it; fewer targets where there are fewer classes."""
    with torch.random.fork_rng(devices=[]):
        library = pyautoattack.AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=3)
        targets = min(9, model(x[:1]).shape[1] - 1)
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = targets
        x_adv, _ = library.run_standard_evaluation(x, y, batch_size=batch_size)
    return torch.as_tensor(x_adv)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own attacks with few steps, for both sides of a test alike."""
    set_version = pyautoattack.AutoAttack._set_version

    def short(self: Any, version: str = "standard") -> None:
        set_version(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 20

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", short)
