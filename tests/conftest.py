"""Small networks and generated data; one thread, since two only get in each other's way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, Pruner, ThreatModel

torch.set_num_threads(1)

Build = Callable[..., nn.Module]
Train = Callable[..., None]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cnn() -> Build:
    """A fresh network of 72 + 288 + 1280 prunable weights for inputs [B, 1, 8, 8]."""

    def build(seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(128, 10),
            )

    return build


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(16, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (16,), generator=generator)


@pytest.fixture
def threat() -> ThreatModel:
    return ThreatModel("Linf", eps=0.1)


@pytest.fixture
def attach() -> Callable[..., Pruner]:
    """A pruner by the name of its corner of the square."""

    def attach(kind: str, model: nn.Module, density: float, **options: Any) -> Pruner:
        if kind == "magnitude":
            return MagnitudePruner(model, density, **options)
        if kind == "hydra":
            return HydraPruner(model, density, **options)
        if kind == "rates":
            return HarpPruner(model, density, learn=("rates",), **options)
        control = {"held": "held", "hinge": "hinge"}[kind]
        return HarpPruner(model, density, control=control, **options)  # type: ignore[arg-type]

    return attach


@pytest.fixture
def train(batch: tuple[Tensor, Tensor]) -> Train:
    """Train a pruner's model for a phase, on the batch, by SGD with momentum."""

    def train(pruner: Pruner, phase: str, steps: int = 5, lr: float = 0.05) -> None:
        x, y = batch
        optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=lr, momentum=0.9)  # type: ignore[arg-type]
        if phase == "prune":
            pruner.follow(optimizer, epochs=1, steps_per_epoch=steps)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(pruner.model(x), y) + pruner.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train
