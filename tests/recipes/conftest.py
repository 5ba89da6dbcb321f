"""A tiny image folder and a tiny network of one's own, for whole runs in under a second."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from robust_plugin.recipes import commands
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.evaluate import before_after

Words = Callable[..., list[str]]

NETWORKS = """
from torch import nn


def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
"""

TINY = {
    "model": "tiny_networks:net",
    "data.name": "folder",
    "data.folder": "images",
    "data.batch-size": "16",
    "data.validation": "0.25",
    "threat.eps": "4/255",
    "density": "0.3",
    "objective.steps": "2",
    "pretrain.epochs": "2",
    "prune.epochs": "2",
    "finetune.epochs": "2",
    "finetune.lr": "0.05",
    "evaluation.steps": "3",
    "evaluation.restarts": "2",
    "evaluation.autoattack": "0",
    "evaluation.curve": "0",
    "device": "cpu",
    "threads": "1",
}


def tiny_words(command: str, out: Path, *more: str) -> list[str]:
    """The command line of a run in under a second; a later option replaces an earlier one."""
    compared = command == "compare"  # which takes --densities and --lrs
    options = [
        f"--{'base.' * compared}{key}={value}"
        for key, value in TINY.items()
        if not (compared and key in ("density", "finetune.lr"))
    ]
    preset = "compare/digits-demo" if command == "compare" else f"{command}/digits"
    options.insert(0, f"--config={preset}")
    given = {word.partition("=")[0] for word in more}
    kept = [option for option in options if option.partition("=")[0] not in given]
    return [command, f"--out={out}", *kept, *more]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of four classes, a bright quarter in noise, and tiny_networks.py."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "tiny_networks.py").write_text(NETWORKS)
    generator = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        for label in range(4):
            folder = root / "images" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (8, 8, 3))
                row, column = 4 * (label // 2), 4 * (label % 2)
                pixels[row : row + 4, column : column + 4] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def pages() -> None:
    """The commands of this test write the page of a run, which takes longer than a tiny run."""


@pytest.fixture(autouse=True)
def few_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests that use ``pages`` write the page of each run; latency is measured quickly."""
    monkeypatch.setattr(before_after, "_SECONDS", 0.02)
    if "pages" not in request.fixturenames:
        monkeypatch.setattr(commands, "page_or_reason", lambda *_, **__: "no page in this test")


@pytest.fixture
def at_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the workplace; what a run adds to sys.path goes away again."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return workplace


@pytest.fixture(scope="session")
def words() -> Words:
    return tiny_words


@pytest.fixture
def run_tiny(at_workplace: Path) -> Callable[..., dict[str, Any]]:
    """Run a tiny command to its end and return all it leaves."""

    def run(command: str, out: Path, *more: str) -> dict[str, Any]:
        assert main(tiny_words(command, out, *more)) == 0
        return left_by(out)

    return run


def left_by(out: Path) -> dict[str, Any]:
    """Everything a run leaves that a figure could depend on, and that it is whole."""
    found: dict[str, Any] = {
        "report": json.loads((out / "report.json").read_text()),
        "config": json.loads((out / "config.json").read_text()),
        "log": [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()],
    }
    del found["report"]["settings"]  # config.json's, which also say on how many workers
    for path in sorted(out.glob("*.safetensors")):
        tensors = {k: t for k, t in load_file(path).items() if not k.startswith("rng")}
        found[path.name] = {k: t.numpy().tobytes() for k, t in tensors.items()}
    epochs = [(line["stage"], line["epoch"]) for line in found["log"]]
    assert len(epochs) == len(set(epochs)), "an epoch is in the log twice"
    return found


@pytest.fixture
def results() -> Callable[[Path], dict[str, Any]]:
    return left_by


@pytest.fixture
def planted() -> Callable[..., Data]:
    """Points of four classes, a bright quarter in noise, easy or hard to tell apart.

    Validation labels may be shifted away from the truth.
    """

    def plant(*, signal: float = 0.5, noise: float = 0.3, shift: int = 0) -> Data:
        def part(n: int, seed: int, shift: int = 0) -> TensorDataset:
            generator = torch.Generator().manual_seed(seed)
            y = torch.arange(n) % 4
            x = noise * torch.rand(n, 3, 8, 8, generator=generator)
            for i, label in enumerate(y.tolist()):
                row, column = 4 * (label // 2), 4 * (label % 2)
                x[i, :, row : row + 4, column : column + 4] += signal
            return TensorDataset(x, (y + shift) % 4)

        return Data("planted", part(48, 0), part(40, 1, shift), part(40, 2), 4, (3, 8, 8))

    return plant
