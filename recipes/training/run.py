"""A run folder: what is in it, and how an interrupted run goes on.

    config.json           all settings
    log.jsonl             a line an epoch
    <stage>.safetensors   model, pruner and optimizer after the stage's last finished epoch
    <stage>.best.safetensors   after its best one, by the validation points
    model.safetensors     the finished network, plain, dense names
    report.json           its evaluation on the test points
    smoothing.txt, .png   certified accuracy against radius, where it is asked for
    unfinished-...        verdicts of an evaluation that was interrupted

Of several processes only the first writes, and all read: they have to see the same folder. Every
file is written whole or not at all, and every stage file names the settings it came from. Nothing
is written before the first epoch has passed, nor where the settings are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin.pruning import checkpoint
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.recipes.config.identity import identity_of, refuse_other_settings
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.data.batches import steps_of
from robust_plugin.recipes.data.load import data_of
from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import device_of, is_first, wait_for_all
from robust_plugin.recipes.runtime.progress import Progress
from robust_plugin.recipes.training.acceleration import Acceleration, check_tracker
from robust_plugin.recipes.training.checks import check_settings
from robust_plugin.runtime.files import write_tensors, write_text
from robust_plugin.runtime.random import seed_of


class Run:
    """One run of a recipe in its folder.

    Args:
        folder: made when there is something to write; an interrupted run in it is continued.
        config: the settings.

    Attributes:
        data: training, validation and test points.
        threat: the threat model.
        device: where it runs.
        objective: the loss of the stage that was entered: the recipe's, or benign in a benign
            pre-training.
        progress: what is shown of it.
        identity: the settings that decided about what has been trained so far.
        steps: how many steps of each stage are trained; None for all.

    Raises:
        ValueError: for data, a device or a checkpoint that is not there, an illegal setting, or a
            folder that is a file.
    """

    def __init__(self, folder: Path, config: RecipeConfig) -> None:
        self.folder, self.config = Path(folder), config
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file; give another --out.")
        self.threat, self.objective = config.threat.build(), config.objective
        check_settings(config)
        check_tracker(config.tracker)
        self.device = device_of(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.data = data_of(config.data)
        self.identity = identity_of(config)
        self.progress = Progress({})
        self.steps: int | None = None

    def begin(self, steps: Mapping[str, int]) -> None:
        """Show the progress of a recipe, whose stages take so many steps each."""
        self.progress = Progress(steps)

    @cached_property
    def acceleration(self) -> Acceleration:
        """What wraps the network for training, and speaks to the tracker."""
        return Acceleration(self.config, self.device, self.folder)

    @property
    def example(self) -> torch.Tensor:
        """One input, for what is counted on a forward pass."""
        return example_of(self.data.shape).to(self.device)

    def fresh_model(self) -> nn.Module:
        """Return the network with random weights, a function of the seed alone."""
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        model = build_model(self.config.model, classes=self.data.classes, shape=self.data.shape)
        if self.config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model = model.to(self.device)
        if ":" in self.config.model:  # the others are ours
            check_takes(model, self.config.model, self.example, self.data.classes)
        return model

    def timed(self, stage: str, what: str) -> AbstractContextManager[None]:
        """Inside, a part of a stage runs that a dry run takes the time of."""
        return nullcontext()

    # --- stages -----------------------------------------------------------------------------

    def enter(self, name: str, stage: StageConfig, pruner: Pruner | None) -> None:
        """Name the settings of the stage that begins; all later ones depend on them."""
        benign = name == "pretrain" and self.config.pretraining == "benign"
        self.objective = ObjectiveConfig("benign") if benign else self.config.objective
        self.identity = {
            **self.identity,
            name: {
                **as_plain(stage),
                "pruner": None if pruner is None else type(pruner).__name__,
                "density": None if pruner is None else pruner.budget.density,
                "rates": None if pruner is None else [int(mask.kept) for mask in pruner.masks],
            },
        }

    def saved(self, name: str, *, best: bool = False) -> checkpoint.Checkpoint | None:
        """Return the stage's last (or best) checkpoint, or None if there is none yet.

        Raises:
            ValueError: if it came from other settings.
        """
        path = self._path(name, best=best)
        if not path.is_file():
            return None
        try:
            found = checkpoint.load(path)
        except ValueError as error:
            raise ValueError(f"{error} Delete it to train the stage {name} anew.") from error
        refuse_other_settings(found.meta["identity"], self.identity, self.folder)
        return found

    def save_epoch(
        self,
        name: str,
        *,
        model: nn.Module,
        pruner: Pruner | None,
        optimizer: torch.optim.Optimizer,
        records: list[dict[str, Any]],
        best: bool,
    ) -> None:
        """Write the log, the best checkpoint and the last one after an epoch, in this order.

        A kill before the last repeats the epoch, and the epoch writes the same log and best again.
        """
        if is_first():
            self._save_epoch(name, model, pruner, optimizer, records, best)
        wait_for_all()

    def _save_epoch(
        self,
        name: str,
        model: nn.Module,
        pruner: Pruner | None,
        optimizer: torch.optim.Optimizer,
        records: list[dict[str, Any]],
        best: bool,
    ) -> None:
        self._write_config()
        log = self.folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        others = [line for line in lines if json.loads(line)["stage"] != name]
        write_text(log, "\n".join([*others, *(json.dumps(record) for record in records)]) + "\n")
        meta = {"identity": self.identity, "records": records, "versions": versions()}
        if best:
            checkpoint.save(self._path(name, best=True), model=model, pruner=pruner, meta=meta)
        checkpoint.save(
            self._path(name), model=model, pruner=pruner, optimizer=optimizer, meta=meta
        )

    def _write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(
            self.folder / "config.json",
            json.dumps({"recipe": type(self.config).__name__, **as_plain(self.config)}, indent=1),
        )

    def _path(self, name: str, *, best: bool = False) -> Path:
        return self.folder / f"{name}{'.best' if best else ''}.safetensors"

    def save_model(self, model: nn.Module, path: Path) -> None:
        """Write a plain network's state with the settings it came from."""
        if not is_first():
            return
        self._write_config()
        write_tensors(path, model.state_dict(), {"identity": self.identity})


@dataclass(frozen=True)
class Length:
    """How long a stage trains.

    Attributes:
        epochs: passes over the training points; in free training each shows a batch several times.
        batches: in an epoch.
        passes: how often each of them is shown.
    """

    epochs: int
    batches: int
    passes: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.batches * self.passes

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.steps_per_epoch


def length_of(run: Run, stage: StageConfig) -> Length:
    """Return how long a stage of a run trains."""
    passes = run.objective.replays if run.objective.name == "free" else 1
    batches = steps_of(run.data.train, batch_size=run.config.data.batch_size)
    return Length(max(1, stage.epochs // passes), batches, passes)


def dense_weights(folder: Path, config: RecipeConfig) -> Path:
    """Return the file with the weights that the prune phase of a run began with.

    That is the run's checkpoint, or what its pre-training kept: the best epoch or the last one.

    Args:
        folder: of the run.
        config: its settings.
    """
    if config.checkpoint is not None:
        return config.checkpoint
    best = ".best" if config.pretrain.select == "best" else ""
    return folder / f"pretrain{best}.safetensors"
