"""What masks cost a training step: dense, fixed and learned masks, ours and by parametrizations.

All contenders take turns in one run, and the least CPU time of each counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robust_plugin import HydraPruner, MagnitudePruner
from robust_plugin.masks.select import StraightThrough
from robust_plugin.recipes.models.networks import resnet18

REPETITIONS = 12
BATCH = 32


class ByParametrization(nn.Module):
    """A mask as one of torch's parametrizations, which changes the names of parameters."""

    def __init__(self, mask: Tensor, scores: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.scores = None if scores is None else nn.Parameter(scores.clone())

    def forward(self, weight: Tensor) -> Tensor:
        if self.scores is None:
            return weight * self.mask
        density = torch.tensor(0.1)
        return weight * StraightThrough.apply(self.mask, self.scores, density, weight.dtype)


def stepper(model: nn.Module, parameters: list[nn.Parameter]) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def contenders(width: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    dense = resnet18(10, (3, 32, 32), width=width)
    found = {"dense": stepper(dense, list(dense.parameters()))}
    fixed = copy.deepcopy(dense)
    pruner = MagnitudePruner(fixed, 0.1)
    masks = [mask.mask.clone() for mask in pruner.masks]
    names = [group.members[0].layer_name for group in pruner.groups]
    pruner.set_phase("finetune")
    found["fixed, ours"] = stepper(fixed, list(fixed.parameters()))
    for kind in ("fixed", "learned"):
        other = copy.deepcopy(dense)
        for name, mask in zip(names, masks, strict=True):
            layer = other.get_submodule(name)
            scores = layer.weight.detach() if kind == "learned" else None
            parametrize.register_parametrization(layer, "weight", ByParametrization(mask, scores))
            layer.parametrizations.weight.original.requires_grad_(kind == "fixed")
        trained = [p for p in other.parameters() if p.requires_grad]
        found[f"{kind}, parametrized"] = stepper(other, trained)
    learned = copy.deepcopy(dense)
    hydra = HydraPruner(learned, 0.1)
    groups = hydra.set_phase("prune")
    step = stepper(learned, [p for group in groups for p in group["params"]])
    for mask in hydra.masks:  # without the top-k after the step, which the others lack too
        mask.unfollowed = False
        mask._chosen_from = -1
        mask.refresh = lambda: None  # type: ignore[method-assign]
    found["learned, ours"] = step
    return found


@pytest.mark.bench
@pytest.mark.parametrize("width", [16, 64])
def test_what_masks_cost_a_training_step(width: int) -> None:
    steps = contenders(width)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(REPETITIONS + 1):
        for name, step in steps.items():
            begun = time.process_time()
            step()
            if repetition:
                times[name].append(time.process_time() - begun)
    least = {name: min(each) for name, each in times.items()}
    print(f"\none training step, ResNet-18 of width {width}, batch {BATCH}, least of {REPETITIONS}")
    for name, seconds in least.items():
        print(f"{name:<24}{seconds:8.4f} s{seconds / least['dense']:8.3f} of dense")
    assert least["fixed, ours"] < 1.1 * least["dense"]
    assert least["fixed, ours"] < 1.05 * least["fixed, parametrized"]
