"""Runs the training loops of tests/system/loops: on which data, and with which arguments."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from forked import Forked
from torch import Tensor, nn
from torch.utils.data import TensorDataset

LOOPS = Path(__file__).resolve().parents[1] / "system/loops"
NAMES = sorted(path.stem.removesuffix("_before") for path in LOOPS.glob("*_before.py"))
DENSITY = 0.1


def source(name: str) -> str:
    return (LOOPS / f"{name}.py").read_text()


def imported(file: Path) -> ModuleType:
    """Import a loop from its file."""
    spec = importlib.util.spec_from_file_location(f"loops_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str) -> ModuleType:
    """Import a loop of the folder by its name."""
    return imported(LOOPS / f"{name}.py")


class Network(nn.Module):
    """A small network with convolutions, BatchNorm and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(512, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(self.features(x).flatten(1)).relu()
        logits: Tensor = self.head(hidden)
        return logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def examples() -> tuple[Tensor, Tensor]:
    """Ten prototypes with noise: separable, and small enough to learn in seconds."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(256) % 10
    prototypes = torch.rand(10, 1, 8, 8, generator=generator)
    noise = 0.15 * torch.randn(256, 1, 8, 8, generator=generator)
    return (prototypes[labels] + noise).clamp(0, 1), labels


class Killed(Exception):
    """The process ends here."""


class Points(TensorDataset):
    """The examples; after ``kill_after`` reads the run is interrupted."""

    def __init__(self, kill_after: int | None = None) -> None:
        super().__init__(*examples())
        self.left = kill_after

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().__getitem__(index)


def due(model: nn.Module) -> int:
    """How many weights a network of density 0.1 keeps, by the papers' formula."""
    sizes = [p.numel() for p in model.parameters() if p.dim() >= 2]
    return sum(max(1, n - int((1 - DENSITY) * n)) for n in sizes)


def kept(model: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() >= 2)


def accuracy(model: nn.Module) -> float:
    x, y = examples()
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def run(
    name: str,
    loop: ModuleType,
    model: nn.Module,
    folder: Path,
    *,
    resume: bool = False,
    data: TensorDataset | None = None,
) -> list[nn.Module]:
    """Run a loop of the kind ``name``; return the networks that it gives.

    Args:
        name: name of the loop, such as "sam".
        loop: the loop as a module, with the pruner or without.
        model: the network to train.
        folder: where the loop writes its checkpoint.
        resume: whether to begin with that checkpoint.
        data: the examples; None for all of them, without an interruption.
    """
    data = Points() if data is None else data
    if name in ("best_state", "ignite"):
        return [loop.train(model, data, Points())]
    if name == "amp_ema":
        return list(loop.train(model, data)[:2])
    if name == "adjust_rate":
        return [loop.train(model, data, folder / "last.pt", resume=resume)]
    if name == "closure":
        x, y = examples()
        loop.Trainer(model).fit(list(zip(x.split(32), y.split(32), strict=True)), epochs=4)
        return [model]
    if name == "skorch":
        return [loop.train(model, *examples()).module_]
    if name == "timm_style":
        output = str(folder / "last.pt")
        settings = {"lr": 0.01, "weight_decay": 0.05, "smoothing": 0.1, "seed": 0, "epochs": 4}
        args = Namespace(**settings, batch_size=32, output=output, resume=resume and output)
        return list(loop.main(args, model, data))
    return [loop.train(model, data)]


def run_in_two_processes(files: list[Path], model: nn.Module, folder: Path) -> None:
    """Run loops like ``ddp`` as torchrun does; rank R writes the folder FILE/rankR.pt.

    Args:
        files: loops with a function ``main(model, dataset, folder)``.
        model: the network to train.
        folder: for each file, a folder of its name is made there.
    """
    torch.save(model.state_dict(), folder / "dense.pt")
    world = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    ports = free_ports(len(files))
    processes = [
        Forked(one_process, folder, files, ports, env={**world, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs


def free_ports(count: int) -> list[str]:
    """Return ports for as many meetings of processes; one port for all would mix them up."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def one_process(folder: Path, files: Sequence[Path], ports: Sequence[str]) -> None:
    """Be one of the two processes."""
    for file, port in zip(files, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        model = network()
        model.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
        own = folder / file.stem
        own.mkdir(exist_ok=True)
        imported(file).main(model, Points(), own)
