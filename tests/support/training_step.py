"""Measures one training step of the prune phase, ours against two others; prints JSON.

Run by test_training_step.py in a process of its own: the allocator's settings have to be in the
environment before it starts, or the figures are glibc's and not ours.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import HydraPruner, ThreatModel, adversarial, pgd, trades
from robust_plugin.masks import select
from robust_plugin.masks.select import topk_mask
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.models.networks import resnet18, wide_resnet
from robust_plugin.recipes.training.acceleration import Acceleration

BATCH = 16
DENSITY = 0.1
EPS, STEP_SIZE, STEPS, BETA = 8 / 255, 2 / 255, 10, 6.0
THREAT = ThreatModel("Linf", eps=EPS)
Step = Callable[[], None]


class SortedMask(torch.autograd.Function):
    """Ones at the largest entries, found by a full sort; the identity in the backward pass."""

    @staticmethod
    def forward(ctx, magnitudes: Tensor, density: float) -> Tensor:
        flat = magnitudes.flatten()
        order = flat.sort().indices
        pruned = int((1 - density) * flat.numel())
        mask = torch.empty_like(flat)
        mask.scatter_(0, order[:pruned], 0.0)
        mask.scatter_(0, order[pruned:], 1.0)
        return mask.view_as(magnitudes)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class SortingConv2d(nn.Conv2d):
    """A convolution that finds its mask anew at every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        mask = SortedMask.apply(self.scores.abs(), DENSITY)
        return self._conv_forward(x, self.weight * mask, self.bias)


class SortingLinear(nn.Linear):
    """Likewise, linear."""

    def forward(self, x: Tensor) -> Tensor:
        mask = SortedMask.apply(self.scores.abs(), DENSITY)
        return F.linear(x, self.weight * mask, self.bias)


def straightforward_network(width: int) -> nn.Module:
    return straightforward(resnet18(10, (3, 32, 32), width=width))


def straightforward(model: nn.Module) -> nn.Module:
    """Give every convolution and linear layer scores of its own; only they and norms train."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            fan_in = weight[0].numel()
            module.scores = nn.Parameter((6 / fan_in) ** 0.5 * weight / weight.abs().max())
            module.weight.requires_grad_(False)
            if module.bias is not None:
                module.bias.requires_grad_(False)
            module.__class__ = SortingConv2d if isinstance(module, nn.Conv2d) else SortingLinear
    return model


def kl(clean: Tensor, robust: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(robust, 1), F.softmax(clean, 1), reduction="batchmean")


def climb(model: nn.Module, x: Tensor, x_adv: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model.eval()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(loss(x_adv), [x_adv])
        x_adv = x_adv.detach() + STEP_SIZE * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    return x_adv


def straightforward_trades(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """24 forward passes: two in each step of the attack, three in the loss, one for the log."""
    start = x + 0.001 * torch.randn_like(x)
    x_adv = climb(model, x, start, lambda z: kl(model(x), model(z)))
    loss = F.cross_entropy(model(x), y) + BETA * kl(model(x), model(x_adv))
    (model(x).argmax(1) == y).float().mean().item()
    return loss


def straightforward_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    start = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    x_adv = climb(model, x, start, lambda z: F.cross_entropy(model(z), y))
    return F.cross_entropy(model(x_adv), y)


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


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


OURS = {
    "trades": trades(THREAT, beta=BETA, steps=STEPS, step_size=STEP_SIZE),
    "pgd": adversarial(pgd(THREAT, steps=STEPS, step_size=STEP_SIZE)),
}
STRAIGHTFORWARD = {"trades": straightforward_trades, "pgd": straightforward_pgd}


def random_batch(size: int = BATCH) -> list[Tensor]:
    return [torch.rand(size, 3, 32, 32), torch.randint(10, (size,))]


def paired(network: Callable[[], nn.Module], device: str) -> dict[str, tuple]:
    """Ours, in channels_last, and the straightforward one, contiguous, with equal weights."""
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
    """One step from equal noise: its loss, seconds of CPU time and seconds."""
    model, objective, optimizer, layout = contender
    x, y = data[0].contiguous(memory_format=layout), data[1]
    torch.manual_seed(seed)
    cpu, wall = time.process_time(), time.perf_counter()
    loss = objective(model, x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    found = loss.item()  # a GPU has come to its end
    return found, time.process_time() - cpu, time.perf_counter() - wall


def race(
    network: Callable[[], nn.Module], *, batch: int, steps: int, device: str
) -> dict[str, list[list[float]]]:
    """Train both in turns on the same batches from the same noise; loss and times of each step."""
    contenders = paired(network, device)
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for step in range(steps):
        torch.manual_seed(1000 + step)
        data = [t.to(device) for t in random_batch(batch)]
        for name, contender in contenders.items():
            found[name].append(list(curve_step(contender, data, seed=step)))
    return found


@dataclass
class Racer:
    """One contender of the race on a GPU.

    Attributes:
        step: (x, y) -> loss; one training step.
        layout: of its inputs.
        joins: the round in which it takes its first step; compiling takes as long as all the rest.
        taken: per step the round, its loss and its seconds.
        error: what ended it.
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
    """The official procedure, and ours as a user has it: float32, bfloat16, compiled."""
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
    """Let all take turns, each on the same batches from the same noise; what it found, in numbers.

    Args:
        network: builds it.
        batch: points in a batch.
        steps: of each contender; those that are compiled join when the others have taken theirs,
            who go on beside them.
        warm_up: first steps whose time does not count.
        device: cuda; anything else is for tests.
        say: is told of every step at once.
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
                except Exception as error:  # the others' figures are worth having
                    each.error = f"{type(error).__name__}: {error}"
                    say({"contender": name, "error": each.error})
                    continue
                each.taken.append((turn, float(loss), seconds))
                say({"contender": name, "step": number, "loss": float(loss), "seconds": seconds})
    reference = found["straightforward"]
    return {name: compared(each, reference, steps, warm_up) for name, each in found.items()}


def compared(each: Racer, reference: Racer, steps: int, warm_up: int) -> dict[str, Any]:
    """Times of the counted steps, over those of the reference in the same rounds; the curves."""
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
    """Seconds to choose all masks anew once, as a GPU does and as a CPU does."""
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


def wrn_28_4() -> nn.Module:
    return wide_resnet(10, (3, 32, 32))


def contenders(width: int, objective: str) -> tuple[dict[str, Step], Step]:
    """The three training steps on equal inputs, and one top-k over all layers."""
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
    steps, topk = contenders(width, objective)
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
