"""A small ViT in Hugging Face's Trainer; as a script, two processes that train it together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from robust_plugin import HarpPruner, Pruner
from robust_plugin.adapters.transformers import prune_with

EPOCHS = {"prune": 2, "finetune": 2}
RATES = {"prune": 0.02}
DENSITY = 0.2


class Images(Dataset[dict[str, Tensor]]):
    """32 images of noise with labels of noise."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(32, 3, 8, 8, generator=generator)
        self.y = torch.randint(3, (32,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def vit(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3},
        **{"intermediate_size": 32, "image_size": 8, "patch_size": 4},
    )
    return ViTForImageClassification(config)


def trainer_of(model: Any, folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """Four optimizer steps an epoch, each of two batches."""
    given: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.1,
        "warmup_steps": 1,
        "save_strategy": "no",
        **options.pop("args", {}),
    }
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    args = TrainingArguments(str(folder), **quiet, **given)
    return kind(model=model, args=args, train_dataset=Images(), **options)


def harp(model: torch.nn.Module) -> Pruner:
    return HarpPruner(model, density=DENSITY)


def pruned(
    folder: Path,
    *,
    resume: Path | None = None,
    make: Callable[[torch.nn.Module], Pruner] = harp,
    epochs: Mapping[str, int] = EPOCHS,
    **options: Any,
) -> tuple[Any, Pruner]:
    """The whole job: HARP on the ViT, or another one, from the beginning or from a checkpoint."""
    model = vit()
    trainer = trainer_of(model, folder, **options)
    rates = {name: rate for name, rate in RATES.items() if name in epochs}
    pruner = prune_with(trainer, make, epochs=epochs, learning_rates=rates)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model, pruner


def two_processes(folder: Path) -> Mapping[str, Any]:
    """Each process has one half of every batch."""
    halves = {"gradient_accumulation_steps": 1}
    try:
        pruned(folder, args={**halves, "ddp_find_unused_parameters": False})
        said = "no error"
    except ValueError as error:
        said = str(error)
    return {"state": pruned(folder, args=halves)[0].state_dict(), "refused": said}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = "0" if os.fork() else "1"  # the imports above take longer than the training
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    where = Path(sys.argv[1])
    torch.save(two_processes(where), where / f"rank{rank}.pt")
    if rank == "0":
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
