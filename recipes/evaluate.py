"""Evaluate a finished network: a run folder, or any model with a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Subset
from tqdm import tqdm

from robust_plugin.adapters.autoattack import AutoAttack, Version
from robust_plugin.adapters.torchattacks import torchattack
from robust_plugin.attacks import pgd
from robust_plugin.cascade import Progress
from robust_plugin.checkpoint import write_text
from robust_plugin.evaluation import evaluate
from robust_plugin.guard import Attack
from robust_plugin.recipes.config import DataConfig, RecipeConfig, ThreatConfig, build
from robust_plugin.recipes.data import load_data, loader
from robust_plugin.recipes.identity import seed_of
from robust_plugin.recipes.models import build_model
from robust_plugin.recipes.run import device_of, load_weights
from robust_plugin.report import Report
from robust_plugin.threat import ThreatModel

_VERSIONS: dict[str, Version] = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
    "screen": "screen",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and how.

    Attributes:
        model: a name or package.module:function; a run folder knows its own.
        weights: safetensors, or a state_dict that weights_only reads; likewise.
        data: whose test points are taken.
        threat: what the adversary may do.
        attacks: any of pgd, autoattack, autoattack-plus, autoattack-rand, screen (apgd-ce and
            apgd-t), and torchattacks.NAME for its classes.
        steps: of PGD.
        restarts: of PGD.
        n: how many of the first test points; None for all.
        seed: of the attacks.
        journal: a folder from which an interrupted AutoAttack goes on.
        batch_size: points at a time.
        device: cpu, cuda, cuda:1...; auto takes cuda where there is one.
        threads: of torch on the CPU; None leaves it alone.
    """

    model: str = "digits-cnn"
    weights: Path = Path("model.safetensors")
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatConfig = field(default_factory=ThreatConfig)
    attacks: tuple[str, ...] = ("pgd", "autoattack")
    steps: int = 20
    restarts: int = 5
    n: int | None = None
    seed: int = 0
    journal: Path | None = None
    batch_size: int = 250
    device: str = "auto"
    threads: int | None = None


def of_run(folder: Path) -> EvaluateConfig:
    """Return the settings that evaluate a finished run as its report did.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    settings, weights = folder / "config.json", folder / "model.safetensors"
    if not (settings.is_file() and weights.is_file()):
        raise ValueError(
            f"{folder} holds no finished run: config.json and model.safetensors are expected."
        )
    try:
        content = json.loads(settings.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{settings} is no JSON: {error}") from error
    names = [field.name for field in dataclasses.fields(RecipeConfig)]
    base = build(RecipeConfig, {name: content[name] for name in names}, where=str(settings))
    return EvaluateConfig(
        base.model,
        weights,
        base.data,
        base.threat,
        steps=base.evaluation.steps,
        restarts=base.evaluation.restarts,
        seed=base.seed,
        batch_size=base.evaluation.batch_size,
        device=base.device,
        threads=base.threads,
    )


def evaluate_network(config: EvaluateConfig, out: Path | None = None) -> Report:
    """Evaluate a network on the first ``n`` test points; write the report to ``out``.

    Raises:
        ValueError: for an unknown attack, or what the model, weights and data refuse.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    threat, device = config.threat.build(), device_of(config.device)
    attacks = [_attack(name, config, threat) for name in config.attacks]
    of = config.data
    data = load_data(of.name, folder=of.folder, image_size=of.image_size)
    model = build_model(config.model, classes=data.classes, shape=data.shape)
    load_weights(model, config.weights)
    test = data.test
    if config.n is not None:
        if not 0 < config.n <= len(test):  # type: ignore[arg-type]
            raise ValueError(f"n is {config.n}; legal: 1 to {len(test)}.")  # type: ignore[arg-type]
        test = Subset(test, range(config.n))
    points = loader(test, batch_size=config.batch_size, seed=0, epoch=0, shuffle=False)
    torch.manual_seed(seed_of(config.seed, "evaluation"))  # as a run does for its report
    report = evaluate(model.to(device), points, attacks=attacks)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, report.to_json())
    return report


def _attack(name: str, config: EvaluateConfig, threat: ThreatModel) -> Attack:
    if name == "pgd":
        return pgd(threat, steps=config.steps, restarts=config.restarts, keep="best")
    if name in _VERSIONS:
        return AutoAttack(
            threat,
            version=_VERSIONS[name],
            seed=config.seed,
            batch_size=config.batch_size,
            journal=config.journal,
            progress=_bar(),
        )
    library, _, kind = name.partition(".")
    if library == "torchattacks" and kind:
        return torchattack(kind, threat, seed=config.seed)
    legal = ", ".join(["pgd", *_VERSIONS, "torchattacks.NAME"])
    raise ValueError(f"attack is {name!r}; legal: {legal}.")


def _bar() -> Callable[[Progress], None]:
    """Return what shows a cascade: batches done, points that stand, time left."""
    bar = tqdm(unit="batch", disable=None)

    def show(progress: Progress) -> None:
        bar.total = progress.of
        bar.set_description(f"{progress.attack}, {progress.left} points stand", refresh=False)
        bar.update(progress.done - bar.n)

    return show
