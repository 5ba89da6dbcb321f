"""A race of training steps on a GPU: the official procedure against ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from contenders import OURS, random_batch, sgd
from straightforward import DENSITY, straightforward, straightforward_trades
from torch import Tensor, nn

from robust_plugin import HydraPruner
from robust_plugin.masks import select
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.training.acceleration import Acceleration


@dataclass
class Racer:
    """One contender of the race on a GPU.

    Attributes:
        step: function (x, y) -> loss that takes one training step.
        layout: memory format of its inputs.
        joins: round of its first step. A compiled contender joins late, because compiling takes as
            long as all other steps together.
        taken: (round, loss, seconds) of each step.
        error: the error that ended it; None if there was none.
    """

    step: Callable[[Tensor, Tensor], Tensor]
    layout: torch.memory_format
    joins: int = 0
    taken: list[tuple[int, float, float]] = field(default_factory=list)
    error: str | None = None


def racer(
    model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, **options: Any
) -> Racer:
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = objective(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Racer(step, **options)


def racers(
    network: Callable[[], nn.Module], device: str, joins: int, stack: ExitStack
) -> dict[str, Racer]:
    """Return the official procedure, and ours in float32, in bfloat16, and compiled in bfloat16."""
    torch.manual_seed(0)
    sorting = straightforward(network().to(device))
    learned = sgd([p for p in sorting.parameters() if p.requires_grad])
    found = {
        "straightforward": racer(
            sorting, straightforward_trades, learned, layout=torch.contiguous_format
        )
    }
    for name, precision, compiled in (
        ("float32", "fp32", False),
        ("bfloat16", "bf16", False),
        ("bfloat16, compiled", "bf16", True),
    ):
        torch.manual_seed(0)
        model = network().to(device, memory_format=torch.channels_last)
        pruner = HydraPruner(model, density=DENSITY)
        optimizer = sgd(pruner.set_phase("prune"))
        pruner.follow(optimizer)
        # What the recipes do: attacks run in the network's precision, and compiled as it is.
        config = RecipeConfig(precision=precision, compile=compiled)
        acceleration = Acceleration(config, torch.device(device), Path())
        stack.enter_context(acceleration.prepared(model))
        found[name] = racer(
            model,
            OURS["trades"],
            optimizer,
            layout=torch.channels_last,
            joins=joins * compiled,
        )
    return found


def gpu_race(
    network: Callable[[], nn.Module],
    *,
    batch: int,
    steps: int,
    warm_up: int,
    device: str,
    say: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Train all contenders in turns, each on the same batches and noise; return their figures.

    Args:
        network: function that builds the network.
        batch: number of points per batch.
        steps: number of steps of each contender. Compiled contenders join when the others have
            taken that many; the others then continue, so that times are taken side by side.
        warm_up: number of first steps whose time does not count.
        device: cuda; another device only in tests.
        say: called with the figures of each step right after it.
    """

    def synchronized() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    with ExitStack() as stack:
        found = racers(network, device, steps, stack)
        for turn in range(2 * steps):
            for name, each in found.items():
                if turn < each.joins or each.error is not None:
                    continue
                number = turn - each.joins
                torch.manual_seed(1000 + number)
                x, y = (t.to(device) for t in random_batch(batch))
                x = x.contiguous(memory_format=each.layout)
                torch.manual_seed(number)
                begun = synchronized()
                try:
                    loss = each.step(x, y)
                    seconds = synchronized() - begun
                except Exception as error:  # the other contenders continue
                    each.error = f"{type(error).__name__}: {error}"
                    say({"contender": name, "error": each.error})
                    continue
                each.taken.append((turn, float(loss), seconds))
                say({"contender": name, "step": number, "loss": float(loss), "seconds": seconds})
    reference = found["straightforward"]
    return {name: compared(each, reference, steps, warm_up) for name, each in found.items()}


def compared(each: Racer, reference: Racer, steps: int, warm_up: int) -> dict[str, Any]:
    """Return losses and times of a contender, and the ratios of its times to the reference's.

    Only steps after the warm-up count, and of the reference only those of the same rounds.
    """
    own = {turn: seconds for turn, _, seconds in each.taken[warm_up:]}
    theirs = [seconds for turn, _, seconds in reference.taken[warm_up:] if turn in own]
    pairs = zip(each.taken[:steps], reference.taken[:steps], strict=False)
    apart = [abs(a - b) / abs(b) for (_, a, _), (_, b, _) in pairs]
    result: dict[str, Any] = {
        "error": each.error,
        "losses": [loss for _, loss, _ in each.taken[:steps]],
        "apart": apart,
        "seconds": [seconds for _, _, seconds in each.taken],
    }
    if own and theirs:
        times = list(own.values())
        result |= {
            "min": min(times),
            "median": statistics.median(times),
            "ratio": min(theirs) / min(times),
            "ratio of medians": statistics.median(theirs) / statistics.median(times),
        }
    return result


def mask_seconds(network: Callable[[], nn.Module], device: str) -> dict[str, float]:
    """Return seconds to compute all masks once: by the pruner, by sorting, and by a threshold."""
    model = network().to(device)
    pruner = HydraPruner(model, density=DENSITY)
    pruner.set_phase("prune")
    magnitudes = [(mask.scores.detach().abs().flatten(), int(mask.kept)) for mask in pruner.masks]
    ways: dict[str, Callable[[], object]] = {
        "update_masks": pruner.update_masks,
        "by sorting": lambda: [select._by_sorting(*each) for each in magnitudes],
        "by threshold": lambda: [select._by_threshold(*each) for each in magnitudes],
    }
    found = {}
    for name, way in ways.items():
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        found[name] = min(times)
    return found
