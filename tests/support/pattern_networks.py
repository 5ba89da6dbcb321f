"""A small network for n:m patterns, its training, and a count of the patterns by plain loops."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robust_plugin import Pruner


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
    )


def counts_of_every(weight: Tensor, m: int) -> set[int]:
    """How many of every m entries along dimension 1 are not zero, as a set; by plain loops."""
    rows = weight.detach().movedim(1, -1).reshape(-1, weight.shape[1]).tolist()
    return {
        sum(value != 0 for value in row[i : i + m]) for row in rows for i in range(0, len(row), m)
    }


def train_steps(
    pruner: Pruner, phase: str, lr: float, count: int = 6
) -> Iterator[torch.optim.Optimizer]:
    """Train by SGD with momentum and weight decay, and yield after every step.

    Weight decay revives weights that gradients alone would leave at zero.
    """
    x, y = torch.rand(16, 1, 8, 8), torch.randint(8, (16,))
    parameters = pruner.set_phase(phase)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-3)
    if phase == "prune":
        for group in optimizer.param_groups[1:]:
            group["weight_decay"] = 0.0
        pruner.follow(optimizer, epochs=2, steps_per_epoch=count // 2)
    for _ in range(count):
        loss = nn.functional.cross_entropy(pruner.model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield optimizer
