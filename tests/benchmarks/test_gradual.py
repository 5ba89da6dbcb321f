"""What gradual pruning costs beside magnitude pruning: one epoch of each phase, and all epochs.

All contenders take turns in one run, and the least CPU time of each counts. The whole job is
weighted as in compare/cifar10-gradual: 10 epochs, of which gradual pruning shrinks for 3, learns
for 2 and fine-tunes for 5.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from robust_plugin import GradualPruner, MagnitudePruner, Pruner, ThreatModel, adversarial, pgd
from robust_plugin.recipes.models.networks import cnn_small, resnet18

ROUNDS, STEPS, BATCH = 6, 12, 64


def trainer(model: nn.Module, groups: list[dict], pruner: Pruner | None) -> Callable[[], None]:
    """Return a function that takes STEPS steps of fast adversarial training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)
    objective = adversarial(pgd(ThreatModel("Linf", "2/255"), steps=1, step_size="2.5/255"))
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    if pruner is not None:
        pruner.follow(optimizer, epochs=1, steps_per_epoch=1000)  # a cut every ten steps

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            objective(model, x, y).backward()
            optimizer.step()

    return steps


def contenders(dense: nn.Module) -> dict[str, Callable[[], None]]:
    found = {}
    at_once = copy.deepcopy(dense)
    pruner: Pruner = MagnitudePruner(at_once, 0.01, rates="lamp")
    found["magnitude, fine-tuning"] = trainer(at_once, pruner.set_phase("finetune"), None)
    shrinking = copy.deepcopy(dense)
    pruner = GradualPruner(shrinking, 0.01)
    found["gradual, shrink"] = trainer(shrinking, pruner.set_phase("shrink"), pruner)
    learning = copy.deepcopy(dense)
    pruner = GradualPruner(learning, 0.01, schedule="at_once")
    found["gradual, prune"] = trainer(learning, pruner.set_phase("prune"), pruner)
    return found


@pytest.mark.bench
@pytest.mark.parametrize("network", ["cnn-small", "resnet18-w16"])
def test_time_of_gradual_against_magnitude(network: str) -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    dense = cnn_small(10, shape) if network == "cnn-small" else resnet18(10, shape, width=16)
    runs = contenders(dense)
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            before = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - before)
    plain = least["magnitude, fine-tuning"]
    ratios = {name: seconds / plain for name, seconds in least.items()}
    whole = (3 * ratios["gradual, shrink"] + 2 * ratios["gradual, prune"] + 5) / 10
    print(f"\n{network}: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    print(f"{network}: gradual over magnitude, 10 epochs: {whole:.3f}")
    assert whole < 1.05
