"""Ten steps of a learned prune phase on a small network, with the masks after every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import HarpPruner, HydraPruner, Pruner, ThreatModel, pgd

STEPS = 10
DENSITY = 0.05
LR = 1.0
THREAT = ThreatModel("Linf", eps=0.1)
Start = Literal["uniform", "clean"]
Update = Callable[[int, Tensor, torch.optim.Optimizer], None]


def network(*, batch_norm: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)

    def norm() -> nn.Module:
        # Statistics that keep pace with ten steps: attacks run on them.
        return nn.BatchNorm2d(16, momentum=0.5) if batch_norm else nn.GroupNorm(4, 16)

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        norm(),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=4),
        norm(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return model.to(dtype)


def sizes(model: nn.Module) -> list[int]:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [layer.weight.numel() for layer in layers]


def batch_of(
    step: int, points: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.rand(points, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(10, (points,), generator=generator)


def attach_learned(kind: str, model: nn.Module) -> Pruner:
    return (HydraPruner if kind == "hydra" else HarpPruner)(model, density=DENSITY)


def follow(pruner: Pruner, optimizer: torch.optim.Optimizer) -> None:
    pruner.follow(optimizer, epochs=2, steps_per_epoch=STEPS // 2)


def due(kind: str, n: list[int], steps: int) -> int:
    """How many weights are to be kept after so many optimizer steps."""
    target = sum(max(1, size - int((1 - DENSITY) * size)) for size in n)
    if kind == "hydra" or steps >= 0.6 * STEPS:
        return target
    # The rates start at 10 %, to the precision of their float32 logits.
    k_min = 0.1 * DENSITY
    odds = (0.1 - k_min) / (1 - 0.1)
    logit = float(torch.tensor(math.log(odds), dtype=torch.float32))
    start = k_min + (1 - k_min) / (1 + math.exp(-logit))
    share = start * (DENSITY / start) ** (steps / STEPS / 0.6)
    return max(target, math.floor(share * sum(n)))


@dataclass
class Trace:
    """The masks after every step, each checked against a sort of the scores as they are then."""

    kind: str
    pruner: Pruner
    masks: list[list[Tensor]] = field(default_factory=list)

    def see(self, steps: int) -> None:
        now = []
        for group in self.pruner.masks:
            order = group.scores.detach().abs().flatten().argsort(descending=True, stable=True)
            expected = torch.zeros(order.numel(), dtype=torch.bool)
            expected[order[: int(group.kept)]] = True
            assert torch.equal(group.mask.flatten(), expected)
            assert not group.mask.is_inference()
            now.append(group.mask.clone())
        n = [group.size for group in self.pruner.groups]
        assert sum(int(mask.sum()) for mask in now) == due(self.kind, n, steps)
        self.masks.append(now)

    @property
    def flips(self) -> list[int]:
        """How many entries of all masks each step changed."""
        return [
            sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
            for old, new in zip(self.masks, self.masks[1:], strict=False)
        ]


def assert_same(trace: Trace, plain: Trace) -> None:
    assert len(trace.masks) == len(plain.masks)
    for ours, theirs in zip(trace.masks, plain.masks, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def sgd(groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=LR, momentum=0.9, weight_decay=5e-4, fused=fused)


def adam(groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.02, fused=fused)


def step_by(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def learn(
    kind: str,
    *,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = sgd,
    dtype: torch.dtype = torch.float32,
    model: nn.Module | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    layout: torch.memory_format = torch.contiguous_format,
    update: Update | None = None,
    between: Callable[[Pruner, int], None] = lambda pruner, step: None,
    autocast: bool = False,
    skipped: int | None = None,
    start: Start = "uniform",
) -> Trace:
    """Ten steps of PGD training; ``skipped`` is a step at which the optimizer does not move."""
    model = network(dtype=dtype) if model is None else model
    pruner = attach_learned(kind, model)
    outer = wrap(model)
    chosen = optimizer(pruner.set_phase("prune"))
    follow(pruner, chosen)
    attack, trace, done = pgd(THREAT, steps=2, start=start), Trace(kind, pruner), 0
    trace.see(done)
    torch.manual_seed(7)
    for step in range(STEPS):
        x, y = batch_of(step, dtype=dtype)
        x = x.contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(outer(attack(outer, x, y)), y) + pruner.budget_penalty()
        if update is not None:
            update(step, loss, chosen)
        elif step == skipped:
            loss.backward()
        else:
            step_by(loss, chosen)
        done += step != skipped
        trace.see(done)
        between(pruner, step)
    assert pruner.steps.step == done
    return trace
