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
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin import checkpoint
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks import pgd
from robust_plugin.evaluation import evaluate
from robust_plugin.guard import Attack
from robust_plugin.pruner import Pruner
from robust_plugin.recipes.acceleration import Acceleration, check_tracker
from robust_plugin.recipes.certificates import certifier_of, smooth
from robust_plugin.recipes.config import DataConfig, RecipeConfig, StageConfig, as_plain
from robust_plugin.recipes.data import Data, load_data, loader
from robust_plugin.recipes.devices import device_of
from robust_plugin.recipes.extra import with_extra
from robust_plugin.recipes.identity import identity_of, refuse_other_settings, seed_of
from robust_plugin.recipes.models import build_model, check_takes, example_of
from robust_plugin.recipes.objective import ObjectiveConfig
from robust_plugin.recipes.processes import is_first, wait_for_all
from robust_plugin.recipes.progress import Progress
from robust_plugin.recipes.settings import check_settings
from robust_plugin.recipes.versions import versions
from robust_plugin.report import Report
from robust_plugin.rows import Certifier
from robust_plugin.smoothing import Smoothed
from robust_plugin.sparsity import sparsity

_UNFINISHED = "unfinished-evaluation-"


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
        if config.evaluation.autoattack:
            of = AutoAttack(self.threat, version=config.evaluation.version)
            of.check_classes(self.data.classes)
        self._certifier(None)
        self._identity = identity_of(config)
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
        self._identity = {
            **self._identity,
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
        refuse_other_settings(found.meta["identity"], self._identity, self.folder)
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
        checkpoint.write_text(
            log, "\n".join([*others, *(json.dumps(record) for record in records)]) + "\n"
        )
        meta = {"identity": self._identity, "records": records, "versions": versions()}
        if best:
            checkpoint.save(self._path(name, best=True), model=model, pruner=pruner, meta=meta)
        checkpoint.save(
            self._path(name), model=model, pruner=pruner, optimizer=optimizer, meta=meta
        )

    def _write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(
            self.folder / "config.json",
            json.dumps({"recipe": type(self.config).__name__, **as_plain(self.config)}, indent=1),
        )

    def _path(self, name: str, *, best: bool = False) -> Path:
        return self.folder / f"{name}{'.best' if best else ''}.safetensors"

    # --- the end ----------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        *,
        small: nn.Module | None = None,
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> Report:
        """Evaluate a finished network on the test points, or return the report that is there.

        Several processes share AutoAttack's points; the rest each does for itself, and smoothing
        the first alone. Writes model.safetensors and report.json.

        Args:
            model: the plain network.
            small: the same without the channels that are zero, which is faster to attack.
            kept: by group, how many of how many are kept; default the weights of each layer.
        """
        path, of = self.folder / "report.json", self.config.evaluation
        identity = {**self._identity, "evaluation": as_plain(of)}
        if path.is_file():
            content = json.loads(path.read_text())
            if content.get("identity") == identity:
                return Report.from_json(json.dumps(content["report"]))
        # Where an interrupted evaluation by these settings goes on.
        journal = self.folder / f"{_UNFINISHED}{seed_of(json.dumps(identity)):016x}"
        measured = (model if small is None else small).eval()
        report = self._measured(measured, journal)
        wait_for_all()  # nobody writes to the journal from here on
        if not is_first():
            return report
        smoothing = self._smoothed(measured, journal) if of.smooth else None
        self.save_model(model, self.folder / "model.safetensors")
        if kept is None:
            table = sparsity(model, self.example)
            kept = {layer.name: [layer.kept, layer.size] for layer in table.layers}
        content = {
            "data": self.data.name,
            "report": json.loads(report.to_json()),
            "smoothing": smoothing,
            "kept": kept,
            "identity": identity,
            "settings": as_plain(self.config),
            "versions": versions(),
        }
        checkpoint.write_text(path, json.dumps(content, indent=1))
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)
        return report

    def _measured(self, model: nn.Module, journal: Path) -> Report:
        """Attack and prove the test points."""
        of, seed = self.config.evaluation, self.config.seed
        attacks: list[Attack] = [
            pgd(self.threat, steps=of.steps, restarts=of.restarts, keep="best")
        ]
        limits = {"certified": of.verify} if of.verify else {}
        if of.autoattack:
            cascade = AutoAttack(
                self.threat, version=of.version, seed=seed, journal=journal / "autoattack"
            )
            attacks.append(cascade)
            limits[cascade.name] = of.autoattack
        points = loader(self.data.test, batch_size=of.batch_size, seed=0, epoch=0, shuffle=False)
        certifier = self._certifier(journal / "proofs")
        torch.manual_seed(seed_of(seed, "evaluation"))
        return evaluate(model, points, attacks=attacks, certifier=certifier, limits=limits)

    def _smoothed(self, model: nn.Module, journal: Path) -> dict[str, Any]:
        """Certify the first test points by votes under noise."""
        of, sigma = self.config.evaluation, self.config.objective.sigma
        smoothed = Smoothed(sigma, n=of.votes, seed=self.config.seed)
        return smooth(
            model, self.data.test, of.smooth, smoothed, self.folder, journal=journal / "smoothing"
        )

    def _certifier(self, journal: Path | None) -> Certifier | None:
        of = self.config.evaluation
        name = of.certify if of.verify else "none"
        return certifier_of(name, self.threat, seconds=of.seconds, journal=journal)

    def save_model(self, model: nn.Module, path: Path) -> None:
        """Write a plain network's state with the settings it came from."""
        if not is_first():
            return
        self._write_config()
        checkpoint.write_tensors(path, model.state_dict(), {"identity": self._identity})


@lru_cache(maxsize=1)
def data_of(of: DataConfig) -> Data:
    """Return the data of a run.

    Runs of one process, as a comparison's are, share them: their images are decoded once.
    """
    data = load_data(
        of.name,
        folder=of.folder,
        validation=of.validation,
        image_size=of.image_size,
        augmentation=of.augmentation,
        test=of.test,
    )
    if of.extra is None:
        return data
    return with_extra(data, of.extra, share=of.extra_share, batch_size=of.batch_size)
