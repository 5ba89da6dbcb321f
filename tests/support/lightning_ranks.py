"""Two fits in two processes; this file runs as a script, which Lightning starts again as rank 1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_modules import DENSITY, EPOCHS, Net, task, trainer
from torch import nn
from torch.utils.data import DataLoader, Subset

from robust_plugin import HarpPruner
from robust_plugin.adapters.lightning import PruningCallback


class Shared(Net):
    """Its ranks share every batch of 16, in the order of the data."""

    def __init__(self) -> None:
        # Without statistics of the batch, the mean over two half batches is that over the whole.
        super().__init__(nn.GroupNorm(2, 8))

    def train_dataloader(self) -> Any:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(Subset(task(), range(rank, 96, ranks)), 16 // ranks)


def run(
    *callbacks: Any, resume: Path | None = None, **options: Any
) -> tuple[int, dict[str, torch.Tensor]]:
    """The rank of this process, and the network that a fit in float64 leaves."""
    module = Shared()
    pruning = PruningCallback(lambda made: HarpPruner(made, DENSITY), epochs=EPOCHS)
    options = {"precision": "64-true", "use_distributed_sampler": False, **options}
    made = trainer(pruning, *callbacks, **options)
    made.fit(module, ckpt_path=resume)
    return made.global_rank, module.state_dict()


def two_processes(folder: Path) -> None:
    torch.set_num_threads(1)
    both = {"devices": 2, "enable_checkpointing": True}
    every = ModelCheckpoint(folder, save_top_k=-1)
    states = {}
    rank, states["ddp"] = run(every, strategy="ddp", **both)
    unused = "ddp_find_unused_parameters_true"
    _, states[unused] = run(ModelCheckpoint(folder / "other"), strategy=unused, **both)
    file = folder / "epoch=3-step=24.ckpt"  # of fine-tuning
    last = ModelCheckpoint(folder / "other")
    _, states["resumed"] = run(last, strategy="ddp", resume=file, **both)
    torch.save(states, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
