"""Steps of every phase of a pruner on a small network, with a look at the masks after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import (
    Geometric,
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Pruner,
)
from robust_plugin.pruning.phases import PhaseName

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
# The prunable weights of ``pattern_networks.small``.
SIZES = (72, 1152, 8192, 256)
NAMES = ("0.weight", "3.weight", "6.weight", "8.weight")
CUTS = 4
GIVEN = dict(zip(NAMES, (1.0, 0.2, 0.05, 0.4), strict=True))
LENGTHS = {"shrink": 8, "prune": 6, "finetune": 4}  # steps
PER_EPOCH = 2

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),  # decays by 0.01 unless told otherwise
}


def last_layer_dense(weights: Any, costs: Any, density: float) -> list[float]:
    """A rule of a user: the last layer at twice the density of the others."""
    return [density] * (len(weights) - 1) + [min(1.0, 2 * density)]


def kept(sizes: tuple[int, ...], density: float) -> int:
    """K, the number of weights that layers of these sizes keep at a density."""
    return sum(max(1, n - int((1 - density) * n)) for n in sizes)


KINDS: dict[str, Any] = {
    "magnitude": (MagnitudePruner, {}),
    "hydra": (HydraPruner, {}),
    "held": (HarpPruner, {}),
    "hinge": (HarpPruner, {"control": "hinge"}),
    "rates": (HarpPruner, {"learn": ("rates",)}),
    "gradual": (GradualPruner, {}),
}


def attach(kind: str, model: nn.Module, density: float | None = None, **options: Any) -> Pruner:
    """A pruner of a kind whose density falls in four cuts."""
    made, own = KINDS[kind]
    pruner: Pruner = made(model, density, **{"schedule": Geometric(CUTS), **own, **options})
    return pruner


def batch_of(step: int, points: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(500 + step)
    x = torch.rand(points, 1, 8, 8, generator=generator)
    return x, torch.randint(8, (points,), generator=generator)


def loss_of(pruner: Pruner, step: int, model: nn.Module | None = None) -> Tensor:
    x, y = batch_of(step)
    network = pruner.model if model is None else model
    return F.cross_entropy(network(x), y) + pruner.budget_penalty()


def steps_of(
    pruner: Pruner,
    phase: PhaseName,
    make: MakeOptimizer = OPTIMIZERS["sgd"],
    *,
    steps: int | None = None,
    announced: int | None = None,
) -> Iterator[int]:
    """Set a phase, follow a new optimizer, and yield after every step.

    Args:
        pruner: a pruner of a network that ``batch_of`` fits.
        phase: the phase to begin.
        make: makes the optimizer.
        steps: number of steps to make; None for those of ``LENGTHS``.
        announced: number of steps that ``follow`` is told; None for those that are made.
    """
    steps = LENGTHS[phase] if steps is None else steps
    optimizer = make(pruner.set_phase(phase))
    if phase != "finetune":
        epochs = (steps if announced is None else announced) // PER_EPOCH
        pruner.follow(optimizer, epochs=epochs, steps_per_epoch=PER_EPOCH)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(pruner, step).backward()
        optimizer.step()
        yield step + 1


def go_through(
    pruner: Pruner,
    make: MakeOptimizer = OPTIMIZERS["sgd"],
    lengths: Mapping[str, int] = LENGTHS,
) -> Iterator[tuple[PhaseName, int]]:
    """Yield (phase, step) after each step of all phases of a pruner."""
    for phase in pruner.order:
        for step in steps_of(pruner, phase, make, steps=lengths[phase]):
            yield phase, step


@dataclass
class Watch:
    """The masks after every step, each checked as it is seen.

    Attributes:
        pruner: the pruner that is watched.
        masks: the masks at every look.
    """

    pruner: Pruner
    masks: list[list[Tensor]] = field(default_factory=list)

    def see(self) -> list[int]:
        """Check that no pruned entry has come back, and return the counts of all groups."""
        now = [mask.mask.clone() for mask in self.pruner.masks]
        counts = [int(mask.sum()) for mask in now]
        assert counts == [mask.kept for mask in self.pruner.masks]
        assert min(counts) >= 1
        for before, mask in zip(self.masks[-1] if self.masks else now, now, strict=True):
            assert not (mask & ~before).any(), "a pruned entry came back"
        for group, mask in zip(self.pruner.groups, now, strict=True):
            if group.channels is None:
                assert not group.members[0].weight[~mask].any()
        self.masks.append(now)
        return counts

    def see_learned(self, left: list[Tensor]) -> list[int]:
        """Check that only entries that shrinking has left are kept, and return the counts."""
        self.masks = [left]
        return self.see()


def states_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two state_dicts, nested or not, hold the same bits."""
    if list(one) != list(other):
        return False
    for key, value in one.items():
        theirs = other[key]
        if isinstance(value, Mapping):
            if not states_equal(value, theirs):
                return False
        elif isinstance(value, Tensor):
            if not torch.equal(value, theirs):
                return False
        elif value != theirs:
            return False
    return True
