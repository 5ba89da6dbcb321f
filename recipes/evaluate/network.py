"""Evaluate a finished network: a run folder, or any model with a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from robust_plugin.adapters.autoattack import AutoAttack, Version
from robust_plugin.adapters.torchattacks import torchattack
from robust_plugin.attacks.cascade import Progress
from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.evaluation.curve import around
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.evaluation.obfuscated_gradients import Obfuscation, obfuscation
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.data.datasets import Data, load_data, loader
from robust_plugin.recipes.data.load import check_folder
from robust_plugin.recipes.evaluate.certifiers import certifier_of
from robust_plugin.recipes.evaluate.page import page
from robust_plugin.recipes.evaluate.settings import check_options
from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import device_of
from robust_plugin.recipes.training.structure import without_channels
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of
from robust_plugin.threat.model import ThreatModel
from robust_plugin.threat.units import parse_eps

_VERSIONS: dict[str, Version] = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
    "screen": "screen",
}


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        report: the figures; a check that fails is among its findings.
        checks: of obfuscated gradients, if they were asked for.
        radii: for the curve.
        note: why checks that were asked for did not run.
    """

    report: Report
    checks: Obfuscation | None
    radii: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        """Return all tables."""
        curve = self.report.curve
        parts = [str(self.report), *([curve.table(self.radii)] if curve is not None else [])]
        said = self.note if self.checks is None else str(self.checks)
        return "\n\n".join([*parts, *([said] if said else [])])


def evaluate_network(
    config: EvaluateConfig, out: Path | None = None, *, before: EvaluateConfig | None = None
) -> Evaluated:
    """Evaluate a network on the first ``n`` test points.

    Args:
        config: the settings.
        out: a folder for report.json, report.html, report.txt, adversarial.pt and, where
            AutoAttack saw all points, robustbench.json; or a file that ends in .json, for the
            report alone.
        before: the settings without the options that were given, which have to have an effect;
            None asks nothing of them.

    Raises:
        ValueError: for an unknown attack, or what the model, weights and data refuse.
    """
    for name, value, least in (
        ("threads", config.threads, 1),
        ("batch_size", config.batch_size, 1),
        ("checks", config.checks, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; legal: {least} or more.")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    threat, device = config.threat.build(), device_of(config.device)
    attacks = [_attack(name, config, threat) for name in config.attacks]
    certifier = certifier_of(
        config.certify, threat, seconds=config.seconds, journal=_journal(config, "proofs")
    )
    if before is not None:
        check_options(config, before)
    radii = config.radii or around(threat)
    for radius in radii:
        parse_eps(radius)  # now, and not after hours
    of = config.data
    check_folder(of)
    data = load_data(
        of.name,
        folder=of.folder,
        validation=of.validation,
        image_size=of.image_size,
        augmentation=of.augmentation,  # of which some say how test points are cut
        test=of.test,
    )
    for attack in attacks:
        if isinstance(attack, AutoAttack):
            attack.check_classes(data.classes)  # now, and not after hours
    model = _network(config, data, config.weights)
    if config.small is not None:
        model = without_channels(config.small, model, data.shape)
    model = model.to(device).eval()
    test = data.test
    if config.n is not None:
        if not 0 < config.n <= len(test):  # type: ignore[arg-type]
            raise ValueError(f"n is {config.n}; legal: 1 to {len(test)}.")  # type: ignore[arg-type]
        test = Subset(test, range(config.n))
    folder = out if out is not None and out.suffix != ".json" else None
    if folder is not None:
        if folder.is_file():
            raise ValueError(f"{folder} is a file; give --out a folder, or a name in .json.")
        if (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} is a run's own folder, whose report would be lost; give --out another, "
                f"such as {folder / 'evaluation'}."
            )
        folder.mkdir(parents=True, exist_ok=True)
    points = loader(test, batch_size=config.batch_size, seed=0, epoch=0, shuffle=False)
    images = None if folder is None else folder / "adversarial.pt"
    checks = _checks(model, test, config, data, threat)  # first: they are quick
    torch.manual_seed(seed_of(config.seed, "evaluation"))  # as a run does for its report
    report = evaluate(model, points, attacks=attacks, certifier=certifier, adversarial=images)
    if checks is not None and checks.failed:
        report = dataclasses.replace(report, findings=(*report.findings, checks.verdict))
    found = Evaluated(report, checks, radii, _unchecked(threat) if config.checks else "")
    if folder is not None and images is not None:
        _write(folder, found, config, data, torch.load(images, weights_only=True))
    elif out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, _json(report, config))
    return found


def _network(config: EvaluateConfig, data: Data, weights: Path) -> nn.Module:
    model = build_model(config.model, classes=data.classes, shape=data.shape)
    load_weights(model, weights)
    check_takes(model, config.model, example_of(data.shape), data.classes)
    return model


def _unchecked(threat: ThreatModel) -> str:
    """Why there are no checks of obfuscated gradients in a threat model; nothing if there are."""
    if threat.norm != "L1" and threat.eps > 0:
        return ""
    return f"no checks for obfuscated gradients in {threat}: they take a radius in Linf or L2"


def _checks(
    model: nn.Module, test: Dataset[Any], config: EvaluateConfig, data: Data, threat: ThreatModel
) -> Obfuscation | None:
    """The checks on the first points, if they are asked for and PGD knows the ball."""
    if not config.checks or _unchecked(threat):
        return None
    few = Subset(test, range(min(config.checks, len(test))))  # type: ignore[arg-type]
    batches = list(loader(few, batch_size=config.checks, seed=0, epoch=0, shuffle=False))
    device = next(model.parameters()).device
    x, y = (torch.cat(each).to(device) for each in zip(*batches, strict=True))
    parent = None if config.parent is None else _network(config, data, config.parent).to(device)
    return obfuscation(model, x, y, threat, parent=parent, seed=config.seed)


def _write(
    folder: Path, found: Evaluated, config: EvaluateConfig, data: Data, images: dict[str, Tensor]
) -> None:
    report, name = found.report, f"{config.model}, {data.name}"
    write_text(folder / "report.json", _json(report, config))
    write_text(folder / "report.txt", f"{found}\n")
    about = f"{config.weights}; test points of {data.name}, the first {report.n}"
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    write_text(
        folder / "report.html",
        page(
            report,
            title=f"Robustness of {name}",
            about=f"{about}; {report.threat}; seed {config.seed}; {made_with}",
            checks=found.checks,
            radii=found.radii,
            images=images,
            settings=as_plain(config),
        ),
    )
    if len(report.flags.get("AutoAttack", ())) == report.n:
        entry = report.robustbench(dataset=data.name, architecture=config.model)
        write_text(folder / "robustbench.json", json.dumps(entry, indent=2))


def _json(report: Report, config: EvaluateConfig) -> str:
    """Return a report as JSON, with the settings and the versions that it was made with."""
    made = {"settings": as_plain(config), "versions": versions()}
    return json.dumps({**json.loads(report.to_json()), "evaluation": made}, indent=1)


def _attack(name: str, config: EvaluateConfig, threat: ThreatModel) -> Attack:
    if name == "pgd":
        return pgd(threat, steps=config.steps, restarts=config.restarts, keep="best")
    if name in _VERSIONS:
        return AutoAttack(
            threat,
            version=_VERSIONS[name],
            seed=config.seed,
            batch_size=config.batch_size,
            journal=_journal(config, name),
            progress=_bar(name),
        )
    if name == "fab":
        return MinimumNorm(threat)
    library, _, kind = name.partition(".")
    if library == "torchattacks" and kind:
        return torchattack(kind, threat, seed=config.seed)
    legal = ", ".join(["pgd", *_VERSIONS, "fab", "torchattacks.NAME"])
    raise ValueError(f"attack is {name!r}; legal: {legal}.")


def _journal(config: EvaluateConfig, name: str) -> Path | None:
    return None if config.journal is None else config.journal / name


def _bar(what: str) -> Callable[[Progress], None]:
    """Return what shows a cascade from its first batch on: points that stand, time left."""
    bar: Any = None

    def show(progress: Progress) -> None:
        nonlocal bar
        bar = bar or tqdm(total=progress.of, unit="batch", disable=None)
        said = f"{what}: {progress.attack}, {progress.left} points stand"
        bar.set_description(said, refresh=False)
        bar.update(progress.done - bar.n)

    return show
