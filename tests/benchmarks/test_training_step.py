"""Time of one training step of the prune phase: ours, a straightforward version, and no pruner.

All contenders take turns in one run, and their ratios are printed. The minimum time of each counts,
because a disturbance can only make a measurement longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_step
from contenders import OURS, STRAIGHTFORWARD, random_batch, sgd
from gpu_race import gpu_race
from straightforward import DENSITY, straightforward_network
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from robust_plugin import HydraPruner
from robust_plugin.recipes.models.networks import resnet18

SCRIPT = Path(training_step.__file__)

# By default glibc returns freed memory to the kernel and requests it again at every layer. The page
# faults make a step up to 1.5 times as long, so these settings make it keep freed memory.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_MMAP_MAX_": "0",
}

# Number of measured steps of ours, the sorted version and the dense network.
REPETITIONS = {(16, "pgd"): (7, 3, 7), (16, "trades"): (7, 3, 7)}
REPETITIONS |= {(64, "pgd"): (4, 1, 4), (64, "trades"): (4, 1, 4)}

# The sorted version is 2.7 to 7 times slower; 2 leaves room for a busy machine. Ours should be at
# most 8 % slower than the dense network and one top-k; that is too little room to assert it, so it
# is only printed.
SORTED_AT_LEAST = 2.0
DENSE_AIM = 1.08


def measured(width: int, objective: str) -> dict[str, float]:
    counts = map(str, REPETITIONS[width, objective])
    found = printed(str(width), objective, *counts)
    return {name: min(times) for name, times in found.items()}


def printed(*words: str) -> dict[str, Any]:
    """Run the script in a process of its own, and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.bench
def test_a_training_step_with_learned_masks() -> None:
    lines = [
        "one training step, prune phase, ResNet-18, batch 16, one thread, seconds of CPU time",
        f"{'':<18}{'ours':>8}{'sorted':>8}{'dense':>8}{'top-k':>8}"
        f"{'sorted / ours':>15}{'ours / (dense + top-k)':>24}",
    ]
    ratios = {}
    for width, objective in REPETITIONS:
        times = measured(width, objective)
        ratios[width, objective] = times["sorted"] / times["ours"]
        overhead = times["ours"] / (times["dense"] + times["topk"])
        lines.append(
            f"{objective + '-10, width ' + str(width):<18}"
            + "".join(f"{times[name]:8.3f}" for name in ("ours", "sorted", "dense", "topk"))
            + f"{ratios[width, objective]:15.2f}{overhead:24.3f}"
            + f"  aim {DENSE_AIM:.2f}: {'met' if overhead <= DENSE_AIM else 'missed'}"
        )
    print("\n" + "\n".join(lines))
    assert min(ratios.values()) >= SORTED_AT_LEAST, lines


# The official procedure sorts all scores in each of 24 forward passes, in float32, contiguous. A
# sort uses one core even if torch may use all (its default); with one thread it takes half of the
# step.
OFFICIAL_AT_LEAST, ONE_THREAD_AT_LEAST = 3.0, 2.0


@pytest.mark.bench
def test_hydra_trades_on_wrn_28_4() -> None:
    """Sorting scores in each of 24 forward passes, against 13 forward passes and one top-k."""
    print("\none training step of HYDRA-TRADES, WRN-28-4, batch 32, seconds")
    print(f"{'threads':<10}{'ours':>8}{'straightforward':>17}{'ratio':>8}{'ratios of pairs':>20}")
    ratios = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        found = printed("race", "32", "4", str(threads))
        assert agree(found, tolerance=0.05)
        # The first step allocates.
        ours, theirs = ([step[2] for step in found[name][1:]] for name in ("ours", "sorted"))
        pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
        ratios.append(min(theirs) / min(ours))
        print(
            f"{threads:<10}{min(ours):8.2f}{min(theirs):17.2f}{ratios[-1]:8.2f}"
            f"{f'{min(pairs):.2f} to {max(pairs):.2f}':>20}"
        )
    assert ratios[0] >= ONE_THREAD_AT_LEAST
    assert ratios[-1] >= OFFICIAL_AT_LEAST


# The aim is 5. At this size a GPU waits for the host, so the ratio is that of operations issued.
GPU_AIM, GPU_AT_LEAST = 5.0, 2.0


@pytest.mark.bench
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hydra_trades_on_resnet18_on_a_gpu() -> None:
    found = printed("gpu")
    print(
        f"\none training step of HYDRA-TRADES, ResNet-18, batch 128, {torch.cuda.get_device_name()}"
    )
    print(f"{'':<20}{'min s':>9}{'median s':>10}{'ratio':>7}{'loss apart, 10 steps':>22}")
    for name, each in found.items():
        assert each["error"] is None, (name, each["error"])
        print(
            f"{name:<20}{each['min']:9.4f}{each['median']:10.4f}{each['ratio']:7.2f}"
            f"{max(each['apart'][:10]):22.4f}"
        )
    best = max(each["ratio"] for each in found.values())
    print(f"aim {GPU_AIM:.0f}: {'met' if best >= GPU_AIM else 'missed'}")
    assert max(found["float32"]["apart"][:10]) <= 0.1
    assert best >= GPU_AT_LEAST


@pytest.mark.bench
def test_the_race_on_a_gpu_is_a_fair_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check its schedule and figures on a CPU; compiled modules are traced but not translated."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compile_module(model, backend="eager"))
    said: list[dict[str, Any]] = []
    found = gpu_race(
        lambda: resnet18(10, (3, 32, 32), width=4),
        batch=8,
        steps=4,
        warm_up=1,
        device="cpu",
        say=said.append,
    )
    assert [each["error"] for each in found.values()] == [None] * 4
    assert [len(each["seconds"]) for each in found.values()] == [8, 8, 8, 4]
    assert len(said) == 28 and all(line["seconds"] > 0 for line in said)
    straightforward, plain, rounded, compiled = found.values()
    assert straightforward["ratio"] == straightforward["ratio of medians"] == 1
    assert straightforward["apart"] == [0.0] * 4
    assert len(set(plain["losses"])) == 4 and max(plain["apart"]) < 0.02
    assert 0 < max(rounded["apart"]) < 0.2  # so it computes in bfloat16
    assert compiled["losses"] == pytest.approx(rounded["losses"], rel=1e-3)


def agree(found: dict[str, Any], *, tolerance: float) -> bool:
    """Whether two runs have equal losses, up to rounding and the signs that rounding changes."""
    ours, theirs = ([step[0] for step in found[name]] for name in ("ours", "sorted"))
    return all(abs(a - b) <= tolerance * b for a, b in zip(ours, theirs, strict=True))


def test_the_curves_of_both_agree() -> None:
    found = training_step.race(
        lambda: resnet18(10, (3, 32, 32), width=4), batch=16, steps=6, device="cpu"
    )
    losses = [step[0] for step in found["ours"]]
    assert len(set(losses)) == 6  # it trains
    assert agree(found, tolerance=0.02), found


def test_the_contenders_compute_the_same_loss() -> None:
    """Ours takes 13 forward passes and the straightforward version 24, for the same loss."""
    passes = {"trades": (13, 24), "pgd": (11, 11)}
    for objective, expected in passes.items():
        torch.manual_seed(0)
        sorting = straightforward_network(4).double()
        torch.manual_seed(0)
        masked = resnet18(10, (3, 32, 32), width=4).double()
        pruner = HydraPruner(masked, density=DENSITY)
        pruner.follow(sgd(pruner.set_phase("prune")))
        x, y = random_batch()
        x = 0.1 + 0.8 * x.double()  # ours clips the start to [0, 1] as well
        # Fresh running statistics make evaluation mode shrink the input to rounding errors, whose
        # signs an attack would follow.
        for module in [*masked.modules(), *sorting.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            assert torch.equal(masked(x), sorting(x))
        found = []
        for model, loss in (
            (masked, OURS[objective]),
            (sorting, STRAIGHTFORWARD[objective]),
        ):
            calls = 0

            def count(module: nn.Module, *_: object, root: nn.Module = model) -> None:
                nonlocal calls
                calls += module is root

            torch.manual_seed(1)
            hook = register_module_forward_hook(count)
            value = loss(model, x, y)
            hook.remove()
            value.backward()
            found.append(
                (value, calls, [p.grad for n, p in model.named_parameters() if "scores" in n])
            )
        (ours, our_calls, our_grads), (theirs, their_calls, their_grads) = found
        assert (our_calls, their_calls) == expected
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
        assert len(our_grads) == len(their_grads) == 21
        for mine, other in zip(our_grads, their_grads, strict=True):
            torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-9)
