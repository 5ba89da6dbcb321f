"""The whole job as one loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learned_steps import DENSITY, batch_of, network, sizes, step_by
from torch import nn
from torch.nn import functional as F

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, Pruner
from robust_plugin.masks.select import kept_count


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("kind", [MagnitudePruner, HydraPruner, HarpPruner])
def test_each_phase_gets_its_optimizer_and_the_end_is_plain(kind: type[Pruner]) -> None:
    model = network()
    pruner = kind(model, DENSITY)
    epochs = {"prune": 2, "finetune": 1} if pruner.learn else {"finetune": 1}
    seen = []

    def make(groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = sgd(groups)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    wrapped: list[nn.Module] = []

    def wrap(inner: nn.Module) -> nn.Module:
        wrapped.append(nn.DataParallel(inner))
        return wrapped[-1]

    for phase in pruner.phases(make, epochs=epochs, steps_per_epoch=2, wrap=wrap):
        assert phase.model is wrapped[-1] and pruner.phase == phase.name
        for epoch in phase:
            for step in range(2):
                x, y = batch_of(2 * epoch + step)
                step_by(F.cross_entropy(phase.model(x), y), phase.optimizer)
            phase.scheduler.step()
            seen.append((phase.name, epoch))
    assert seen == [(name, epoch) for name, n in epochs.items() for epoch in range(n)]
    assert len(wrapped) == len(epochs)
    assert pruner.phase == "finalized"
    weights = [p for p in model.parameters() if p.dim() >= 2]
    due = sum(kept_count(n, DENSITY) for n in sizes(network()))
    assert sum(int(w.count_nonzero()) for w in weights) == due
    network().load_state_dict(model.state_dict())


def test_optimizers_by_phase() -> None:
    pruner = HydraPruner(network(), DENSITY)
    makes = {"prune": sgd, "finetune": lambda groups: torch.optim.Adam(groups, lr=0.01)}
    kinds = []
    for phase in pruner.phases(makes, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1):
        kinds.append(type(phase.optimizer))
        step_by(F.cross_entropy(pruner.model(batch_of(0)[0]), batch_of(0)[1]), phase.optimizer)
    assert kinds == [torch.optim.SGD, torch.optim.Adam]


def test_a_phase_that_made_no_step_raises() -> None:
    pruner = HydraPruner(network(), DENSITY)
    with pytest.raises(ValueError, match="learned nothing in its prune phase"):
        for _ in pruner.phases(sgd, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1):
            pass
    assert pruner.phase == "prune"


@pytest.mark.parametrize(
    ("epochs", "says"),
    [
        ({"finetune": 3}, "without 'prune', in which HydraPruner learns"),
        ({"prune": 0}, "whole numbers above 0, for 'prune' and 'finetune'"),
        ({"prune": 2.5}, "whole numbers above 0"),
        ({"prune": 1, "shrink": 3}, "legal: whole numbers above 0, for 'prune' and 'finetune'"),
    ],
)
def test_illegal_lengths(epochs: dict[str, int], says: str) -> None:
    pruner = HydraPruner(network(), DENSITY)
    with pytest.raises(ValueError, match=says):
        next(pruner.phases(sgd, epochs=epochs, steps_per_epoch=1))
    assert pruner.phase == "attached"


def test_other_mistakes() -> None:
    pruner = MagnitudePruner(network(), DENSITY)
    with pytest.raises(TypeError, match="epochs is 5; give a dict"):
        next(pruner.phases(sgd, epochs=5, steps_per_epoch=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="legal: whole numbers above 0, for 'finetune'"):
        next(pruner.phases(sgd, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1))
    ready = torch.optim.SGD(pruner.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="make_optimizer is a SGD; each phase trains other"):
        next(pruner.phases(ready, epochs={"finetune": 1}, steps_per_epoch=1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wrap is 3; give a function of the network"):
        next(pruner.phases(sgd, epochs={"finetune": 1}, steps_per_epoch=1, wrap=3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make_optimizer has no function for 'finetune'"):
        next(pruner.phases({"prune": sgd}, epochs={"finetune": 1}, steps_per_epoch=1))
