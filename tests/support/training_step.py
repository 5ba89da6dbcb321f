"""Measure one training step of the prune phase, ours against two others; print JSON.

test_training_step.py runs this script in a process of its own, because the allocator reads its
settings from the environment when the process starts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from contenders import OURS, STRAIGHTFORWARD, random_batch, sgd
from gpu_race import gpu_race, mask_seconds
from straightforward import (
    DENSITY,
    straightforward,
    straightforward_network,
    straightforward_trades,
)
from torch import Tensor, nn

from robust_plugin import HydraPruner
from robust_plugin.masks.select import topk_mask
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.recipes.models.networks import resnet18, wide_resnet

Step = Callable[[], None]


def step_of(
    model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, data: list[Tensor]
) -> Step:
    x, y = data

    def step() -> None:
        loss = objective(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def paired(network: Callable[[], nn.Module], device: str) -> dict[str, tuple]:
    """Return our network in channels_last and the straightforward one, with equal weights."""
    torch.manual_seed(0)
    masked = network().to(device, memory_format=torch.channels_last)
    torch.manual_seed(0)
    sorting = straightforward(network().to(device))
    pruner = HydraPruner(masked, density=DENSITY)
    optimizer = sgd(pruner.set_phase("prune"))
    pruner.follow(optimizer)
    learned = sgd([p for p in sorting.parameters() if p.requires_grad])
    return {
        "ours": (masked, OURS["trades"], optimizer, torch.channels_last),
        "sorted": (sorting, straightforward_trades, learned, torch.contiguous_format),
    }


def curve_step(contender: tuple, data: list[Tensor], seed: int) -> tuple[float, float, float]:
    """Take one step with seeded noise; return its loss, CPU seconds and wall-clock seconds."""
    model, objective, optimizer, layout = contender
    x, y = data[0].contiguous(memory_format=layout), data[1]
    torch.manual_seed(seed)
    cpu, wall = time.process_time(), time.perf_counter()
    loss = objective(model, x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    found = loss.item()  # waits for a GPU to finish
    return found, time.process_time() - cpu, time.perf_counter() - wall


def race(
    network: Callable[[], nn.Module], *, batch: int, steps: int, device: str
) -> dict[str, list[list[float]]]:
    """Train both in turns on the same batches and noise; return loss and times of each step."""
    contenders = paired(network, device)
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for step in range(steps):
        torch.manual_seed(1000 + step)
        data = [t.to(device) for t in random_batch(batch)]
        for name, contender in contenders.items():
            found[name].append(list(curve_step(contender, data, seed=step)))
    return found


def wrn_28_4() -> nn.Module:
    return wide_resnet(10, (3, 32, 32))


def training_steps(width: int, objective: str) -> tuple[dict[str, Step], Step]:
    """Return the three training steps on equal inputs, and one top-k over all layers."""
    ours, data = OURS[objective], random_batch()
    masked = resnet18(10, (3, 32, 32), width=width)
    pruner = HydraPruner(masked, density=DENSITY)
    optimizer = sgd(pruner.set_phase("prune"))
    pruner.follow(optimizer)
    sorting = straightforward_network(width)
    learned = sgd([p for p in sorting.parameters() if p.requires_grad])
    dense = resnet18(10, (3, 32, 32), width=width)
    steps = {
        "ours": step_of(masked, ours, optimizer, data),
        "sorted": step_of(sorting, STRAIGHTFORWARD[objective], learned, data),
        "dense": step_of(dense, ours, sgd(dense.parameters()), data),
    }
    scores = [(mask.scores.detach(), int(mask.kept)) for mask in pruner.masks]

    def topk() -> None:
        for values, kept in scores:
            topk_mask(values, kept)

    return steps, topk


def seconds(step: Step) -> float:
    # CPU time of this process: what others do on the machine is not charged to the step.
    start = time.process_time()
    step()
    return time.process_time() - start


def measure(width: int, objective: str, repetitions: dict[str, int]) -> dict[str, list[float]]:
    torch.manual_seed(0)
    steps, topk = training_steps(width, objective)
    times: dict[str, list[float]] = {name: [] for name in [*steps, "topk"]}
    for name, step in steps.items():
        if repetitions[name] > 1:
            step()  # the first step allocates
    topk()
    for repetition in range(max(repetitions.values())):
        for name, step in steps.items():
            if repetition < repetitions[name]:
                times[name].append(seconds(step))
        times["topk"].append(seconds(topk))
    return times


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "gpu":

        def say(line: dict[str, Any]) -> None:
            print(json.dumps(line), flush=True)

        def resnet() -> nn.Module:
            return resnet18(10, (3, 32, 32))

        say({"device": torch.cuda.get_device_name(), "torch": torch.__version__})
        say({"masks": mask_seconds(resnet, "cuda")})
        say(gpu_race(resnet, batch=128, steps=12, warm_up=4, device="cuda", say=say))
        sys.exit()
    if sys.argv[1] == "race":
        batch, steps, threads = map(int, sys.argv[2:])
        torch.set_num_threads(threads)
        print(json.dumps(race(wrn_28_4, batch=batch, steps=steps, device="cpu")))
        sys.exit()
    width, objective, *counts = sys.argv[1:]
    wanted = dict(zip(("ours", "sorted", "dense"), map(int, counts), strict=True))
    found = measure(int(width), objective, wanted)
    print(json.dumps(found))
