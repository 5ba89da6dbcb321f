"""A LightningModule as people write it, a task that it learns, and one short fit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = {"prune": 2, "finetune": 3}
DENSITY = 0.1
# The layers have 72, 576 and 288 weights: n - int(0.9 n) of each.
KEPT = 8 + 58 + 29
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def task() -> TensorDataset:
    """96 images of four classes that can be separated."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (96,), generator=generator)
    centers = torch.randn(4, 1, 8, 8, generator=generator)
    return TensorDataset(centers[y] + 0.3 * torch.randn(96, 1, 8, 8, generator=generator), y)


def network(norm: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(1, 8, 3, padding=1),
        norm or nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
    ]
    return nn.Sequential(*layers)


class Net(LightningModule):
    """Nothing in here knows of pruning."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.model = network(norm)
        self.max_epochs: list[int | None] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        self.max_epochs.append(self.trainer.max_epochs)
        optimizer = torch.optim.SGD(self.parameters(), **OPTIONS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 5, "accelerator": "cpu", "enable_checkpointing": False}
    return Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})


def fit(*callbacks: Any, module: Any = None, resume: Any = None, **options: Any) -> Any:
    """Return the module after a fit of six batches an epoch."""
    made = trainer(*callbacks, **options)
    module = Net() if module is None else module
    loaders = DataLoader(task(), 16), DataLoader(task(), 96)
    made.fit(module, *loaders, ckpt_path=resume)
    return module


def non_zeros(model: nn.Module) -> int:
    weights = [p for p in model.parameters() if p.dim() > 1]
    return sum(int(weight.count_nonzero()) for weight in weights)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
