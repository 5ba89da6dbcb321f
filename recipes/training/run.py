"""The folder of a run, and how an interrupted run is continued from it.

These files are in the folder::

    config.json               all settings
    log.jsonl                 one line per epoch
    <stage>.safetensors       model, pruner and optimizer after the last finished epoch of a stage
    <stage>.best.safetensors  model and pruner after the best epoch on the validation points
    model.safetensors         the final network without masks; names as in the dense network
    report.html               page of the run, for a browser
    report.json               evaluation of the final network on the test points
    before_after.json, .txt   size, latency and accuracy of the dense and the pruned network
    examples.safetensors      a few test points, clean and attacked, for the page
    smoothing.txt, .png       certified accuracy against radius, if it was asked for
    unfinished-...            finished part of an interrupted evaluation

Only the first process writes, and all processes read, so they must share the folder. A file is
written completely or not at all. Every checkpoint of a stage holds the settings it was trained
with. Nothing is written before the first epoch has ended, or if the settings are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin.pruning import checkpoint
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.config.resume_check import identity_of, refuse_other_settings
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.data.load import data_of
from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import device_of, is_first, wait_for_all
from robust_plugin.recipes.runtime.progress import RunProgress
from robust_plugin.recipes.training.acceleration import Acceleration, check_tracker
from robust_plugin.recipes.training.checks import check_settings
from robust_plugin.runtime.files import write_tensors, write_text
from robust_plugin.runtime.random import seed_of


class Run:
    """One run of a recipe: its settings, data, device and folder.

    Args:
        folder: folder of the run; an interrupted run in it is continued. The folder is created when
            the first file is written.
        config: settings of the recipe.

    Attributes:
        data: training, validation and test points.
        threat: threat model of the run.
        device: device that the run computes on.
        objective: settings of the current stage's objective: benign in benign pre-training,
            otherwise the objective of the recipe.
        progress: progress bars and estimated time left.
        expected: expected seconds of each task of the evaluation at the end, for the time left.
        identity: all settings that have an influence on what has been trained so far. A checkpoint
            with other settings is refused.
        steps: number of optimizer steps to take per stage in a dry run; None takes all steps.
        stage: name of the current stage; empty before the first one.
        teacher: the dense network, if the loss has a distillation term.

    Raises:
        ValueError: if a setting is illegal, if the data, the device or the checkpoint does not
            exist, or if the folder is a file.
        ImportError: if the package of the tracker is not installed.
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
        self.identity = identity_of(config, content=self.data.content)
        self.progress = RunProgress({}, where=self.folder)
        self.expected: dict[str, float] = {}
        self.steps: int | None = None
        self.stage = ""
        self.teacher: nn.Module | None = None

    def begin(self, steps: Mapping[str, int]) -> None:
        """Start the progress bar and the estimate of the time left.

        Args:
            steps: number of optimizer steps of each stage by name, in the order they are trained.
        """
        self.progress = RunProgress(steps, expected=self.expected, where=self.folder)

    @cached_property
    def acceleration(self) -> Acceleration:
        """The object that wraps the network for training and writes to the tracker of this run."""
        return Acceleration(self.config, self.device, self.folder)

    @property
    def example(self) -> torch.Tensor:
        """One example input of the network on the run's device, shape [1, C, H, W]."""
        return example_of(self.data.shape).to(self.device)

    def fresh_model(self) -> nn.Module:
        """Return a new network on the run's device; its random weights depend only on the seed.

        Raises:
            ValueError: if a network of the user does not fit the shape or the classes of the data.
        """
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        model = build_model(self.config.model, classes=self.data.classes, shape=self.data.shape)
        if self.config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model = model.to(self.device)
        if ":" in self.config.model:  # a network of the user; ours need no check
            check_takes(model, self.config.model, self.example, self.data.classes)
        return model

    def timed(self, stage: str, what: str) -> AbstractContextManager[None]:
        """Return a context manager for a part of a stage; a dry run measures the time in it.

        Args:
            stage: name of the stage.
            what: name of the part, such as ``"validation"``.
        """
        return nullcontext()

    # --- stages -----------------------------------------------------------------------------

    def enter(self, name: str, stage: StageConfig, pruner: Pruner | None) -> None:
        """Begin a stage: set its objective and add its settings to the run's identity.

        Later stages continue from the result of this stage, so their identity includes its settings
        too.

        Args:
            name: name of the stage.
            stage: settings of the stage.
            pruner: pruner attached to the network; None for a dense network.
        """
        self.stage = name
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
        """Return a checkpoint of a stage; None if the stage has not written one.

        Args:
            name: name of the stage.
            best: return the checkpoint of the best epoch on the validation points, instead of the
                last epoch.

        Raises:
            ValueError: if the file is damaged, or was trained with other settings.
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
    ) -> None:
        """Write the log and the last checkpoint after an epoch, in this order.

        If the process is killed before the last file is written, the continued run repeats the
        epoch and writes the same log, and the same best checkpoint, again.

        Args:
            name: name of the stage.
            model: network that is trained.
            pruner: pruner attached to the network; None for a dense network.
            optimizer: optimizer of the stage.
            records: losses, accuracies and densities of all epochs of the stage so far, one dict
                per epoch.
        """
        if is_first():
            self._write_config()
            log = self.folder / "log.jsonl"
            lines = log.read_text().splitlines() if log.is_file() else []
            others = [line for line in lines if json.loads(line)["stage"] != name]
            write_text(
                log, "\n".join([*others, *(json.dumps(record) for record in records)]) + "\n"
            )
            meta = self._meta(records)
            checkpoint.save(
                self._path(name), model=model, pruner=pruner, optimizer=optimizer, meta=meta
            )
        wait_for_all()

    def save_best(
        self, name: str, *, model: nn.Module, pruner: Pruner | None, records: list[dict[str, Any]]
    ) -> None:
        """Write the checkpoint of the best epoch on the validation points.

        Args:
            name: name of the stage.
            model: network that was validated.
            pruner: pruner attached to the network; None for a dense network.
            records: losses, accuracies and densities of all epochs of the stage so far; the last
                one is of the best epoch.
        """
        if is_first():
            self._write_config()
            path, meta = self._path(name, best=True), self._meta(records)
            checkpoint.save(path, model=model, pruner=pruner, meta=meta)

    def _meta(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a checkpoint holds besides model, pruner and optimizer."""
        return {"identity": self.identity, "records": records, "versions": versions()}

    def _write_config(self) -> None:
        """Create the folder, and write the settings and the name of their class to config.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(
            self.folder / "config.json",
            json.dumps({"recipe": type(self.config).__name__, **as_plain(self.config)}, indent=1),
        )

    def _path(self, name: str, *, best: bool = False) -> Path:
        """Return the path of the checkpoint of a stage's last epoch, or of its best one."""
        return self.folder / f"{name}{'.best' if best else ''}.safetensors"

    def save_model(self, model: nn.Module, path: Path) -> None:
        """Write a network's weights, and the settings it was trained with, to a safetensors file.

        Only the first process writes.

        Args:
            model: network without masks.
            path: path of the file.
        """
        if not is_first():
            return
        self._write_config()
        write_tensors(path, model.state_dict(), {"identity": self.identity})


def dense_weights(folder: Path, config: RecipeConfig) -> Path:
    """Return the path of the weights of the dense network that a run prunes.

    This is the configured checkpoint or, without one, the checkpoint of pre-training after its best
    or last epoch, as ``config.pretrain.select`` says.

    Args:
        folder: folder of the run.
        config: settings of the run.
    """
    if config.checkpoint is not None:
        return config.checkpoint
    best = ".best" if config.pretrain.select == "best" else ""
    return folder / f"pretrain{best}.safetensors"
