"""Several processes give the same losses, rates, masks and files as one process.

They are processes like those of torchrun, and communicate by gloo.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from safetensors.torch import load_file

from robust_plugin.masks.mask_state import facts_of
from robust_plugin.recipes import commands
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.papers import registry
from robust_plugin.recipes.runtime.process_group import device_of

Words = Callable[..., list[str]]

# Without BatchNorm, so that results differ only by the rounding of sums in float32.
PLAIN = """
from torch import nn


def plain(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
NOISY = ("--model=plain_network:plain", "--data.augmentation=crop+flip", "--prune.lr=0.5")
# Nine points per batch, and three in the last batch, are not divisible by two processes.
ODD = ("--data.batch-size=9",)
# The last batch has one point, so the second process has none.
ALONE = ("--data.batch-size=47",)

# Names of folders, and the command lines of the runs in them, for one process and for two.
RUNS: dict[str, tuple[str, ...]] = {
    "trades": ("hydra", *NOISY, *ODD, "--objective.name=trades", "--data.extra=extra.npz"),
    "free": (
        *("harp", *NOISY, *ODD, "--objective.name=free", "--objective.replays=2"),
        *(f"--{stage}.epochs=4" for stage in ("pretrain", "prune", "finetune")),
    ),
    "mixtrain": ("hydra", *NOISY, *ALONE, "--objective.name=mixtrain", "--objective.points=5"),
    "gradual": (
        *("gradual", *NOISY, *ODD, "--finetune.epochs=3", "--regularizers.distill=0.3"),
        *("--regularizers.average=0.5", "--regularizers.weight-perturbation=0.01"),
        "--regularizers.score-perturbation=0.02",
    ),
    "batch norm": ("harp", "--objective.name=trades", "--prune.lr=0.5", "--precision=bf16"),
}
KILLED = ("harp", *NOISY, "--threat.norm=L2", "--threat.eps=0.3", "--prune.epochs=6")
# Two processes with two micro-batches each: batches of nine and of three points in four parts.
OF_TWO = {"free": ("--accumulate=2",)}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launched(
    function: Callable[..., int | None], *arguments: Any, cwd: Path, ranks: int = 2
) -> list[Forked]:
    """Start processes with the environment that torchrun gives them."""
    port = free_port()
    return [
        Forked(
            function,
            *arguments,
            cwd=cwd,
            env={
                **{"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                **{"WORLD_SIZE": str(ranks), "RANK": str(rank)},
                **{"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)},
            },
        )
        for rank in range(ranks)
    ]


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    (workplace / "plain_network.py").write_text(PLAIN)
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    np.savez(workplace / "extra.npz", images=images, labels=np.arange(30) % 4)
    return workplace


def one_of_two(out: Path) -> None:
    """Run all command lines as one of two processes, and save this process's final networks."""
    finished: dict[str, dict[str, torch.Tensor]] = {}
    lines = json.loads((out / "lines.json").read_text())
    train = registry.train_recipe
    names = list(lines)

    def kept(name: str, run: Any) -> Any:
        model = train(name, run)
        finished[names[len(finished)]] = {k: t.clone() for k, t in model.state_dict().items()}
        return model

    registry.train_recipe = kept
    commands.page_or_reason = lambda *_, **__: "no page in this test"  # it takes longer than a run
    sys.path.insert(0, os.getcwd())
    for port, line in lines.values():
        os.environ["MASTER_PORT"] = port  # the port of the group before may still be in use
        assert main(line) == 0
    torch.save(finished, out / f"rank{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def by_two(place: Path, words: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All runs by two processes: their folder, their output, and the networks of each process."""
    out = tmp_path_factory.mktemp("two")
    lines = {
        name: (free_port(), words(command, out / name, *more, *OF_TWO.get(name, ())))
        for name, (command, *more) in RUNS.items()
    }
    (out / "lines.json").write_text(json.dumps(lines))
    processes = launched(one_of_two, out, cwd=place)
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], found
    states = [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return {"out": out, "states": states, "printed": [printed for printed, _ in found]}


@pytest.fixture
def by_one(
    place: Path, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that does a run in this process alone."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])

    def run(name: str, *more: str) -> Path:
        command, *given = RUNS.get(name, KILLED)
        assert main(words(command, tmp_path / name, *given, *more)) == 0
        return tmp_path / name

    return run


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_course(one: Path, other: Path) -> None:
    """Check that logs, rates and masks are equal, except for scores that are nearly equal."""
    first, second = log(one), log(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert (b["stage"], b["density"]) == (a["stage"], a["density"])
        assert b["robust"] == pytest.approx(a["robust"], abs=1 / 16)  # one of the 16 points
    a, b = (load_file(folder / "prune.safetensors") for folder in (one, other))
    scores = [key for key in a if key.startswith("model/") and key.endswith(".scores")]
    assert len(scores) == 3
    for key in scores:
        group = key.removesuffix("scores")
        states = [facts_of(each[group + "_extra_state"]) for each in (a, b)]
        assert states[0]["kept"] == states[1]["kept"]
        if group + "rate" in a:
            torch.testing.assert_close(a[group + "rate"], b[group + "rate"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)
        mine, theirs = a[key].abs().flatten(), b[key].abs().flatten()
        count = states[0]["kept"]
        threshold = mine.sort(descending=True).values[count - 1]
        kept, kept_there = (torch.zeros(len(mine), dtype=torch.bool) for _ in range(2))
        kept[mine.topk(count).indices] = True
        kept_there[theirs.topk(count).indices] = True
        differ = kept != kept_there
        assert (mine[differ] - threshold).abs().le(1e-6).all()


@pytest.mark.parametrize("name", ["trades", "free", "mixtrain", "gradual"])
def test_two_processes_are_one_with_the_whole_batch(
    name: str, by_two: dict[str, Any], by_one: Callable[..., Path]
) -> None:
    same_course(by_one(name), by_two["out"] / name)


@pytest.mark.parametrize(("name", "count"), [("trades", 3), ("free", 2)])
def test_micro_batches_are_one_batch(
    name: str, count: int, by_two: dict[str, Any], by_one: Callable[..., Path]
) -> None:
    same_course(by_one(name, f"--accumulate={count}"), by_two["out"] / name)


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_hold_the_same_network(name: str, by_two: dict[str, Any]) -> None:
    first, second = (state[name] for state in by_two["states"])
    assert len(first) > 0 and first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_only_the_first_process_writes_and_speaks(by_two: dict[str, Any]) -> None:
    first, second = by_two["printed"]
    assert second == "" and first.count("all of it in") == len(RUNS)
    for name in RUNS:
        found = log(by_two["out"] / name)
        assert len({(line["stage"], line["epoch"]) for line in found}) == len(found)
        report = json.loads((by_two["out"] / name / "report.json").read_text())
        assert len(report["report"]["flags"]["clean"]) == 32


def test_killed_on_two_processes_it_goes_on_on_one(
    place: Path, words: Words, tmp_path: Path, by_one: Callable[..., Path]
) -> None:
    whole = by_one("whole")
    out = tmp_path / "killed"
    line = words(KILLED[0], out, *KILLED[1:])
    processes = launched(main, line, cwd=place)
    while not (out / "prune.safetensors").exists():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.002)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
    stage, epoch = (log(out)[-1][key] for key in ("stage", "epoch"))
    assert stage == "prune" and epoch < 5  # else the run had finished before
    assert main(line) == 0
    same_course(whole, out)


def test_a_comparison_is_not_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare"]) == 2
    assert "leave torchrun out" in capsys.readouterr().err


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has mps")
@pytest.mark.parametrize("name", ["mps", "vulkan", "privateuseone", "gpu", "cuda:77", ""])
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"device is {name!r}, .*; legal here: auto, cpu") as found:
        device_of(name)
    assert len(str(found.value)) < 200


def test_a_device_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="device is 'meta', whose tensors hold no values; legal"):
        device_of("meta")
