"""The command ``evaluate``: measure any network with a checkpoint, such as that of a run.

``evaluate_network`` attacks the network, proves points, checks for obfuscated gradients, and writes
the reports.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.evaluation.curve import around
from robust_plugin.evaluation.obfuscated_gradients import obfuscation
from robust_plugin.evaluation.obfuscation_verdict import Obfuscation
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.load import check_folder
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.evaluate.attacks_by_name import attack_by_name, journal_of
from robust_plugin.recipes.evaluate.certifiers import certifier_of
from robust_plugin.recipes.evaluate.measure import first_points, measure
from robust_plugin.recipes.evaluate.page import page
from robust_plugin.recipes.evaluate.settings import check_options
from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import device_of
from robust_plugin.recipes.training.weights_or_channels import without_channels
from robust_plugin.runtime.files import write_text
from robust_plugin.threat.model import ThreatModel
from robust_plugin.threat.units import parse_eps


@dataclass(frozen=True)
class Evaluated:
    """Results of an evaluation.

    Attributes:
        report: accuracies, and findings about the network; a failed check is one of them.
        checks: checks for obfuscated gradients; None if they did not run.
        radii: radii at which the table of robust accuracy against eps is printed.
        note: the reason why the requested checks did not run; empty otherwise.
    """

    report: Report
    checks: Obfuscation | None
    radii: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        """Return all tables as text, separated by empty lines."""
        curve = self.report.curve
        parts = [str(self.report), *([curve.table(self.radii)] if curve is not None else [])]
        said = self.note if self.checks is None else str(self.checks)
        return "\n\n".join([*parts, *([said] if said else [])])


def evaluate_network(
    config: EvaluateConfig, out: Path | None = None, *, before: EvaluateConfig | None = None
) -> Evaluated:
    """Evaluate a network on the first ``config.n`` test points, and write the results.

    Args:
        config: settings of the evaluation.
        out: folder for report.json, report.html, report.txt, adversarial.pt and, if AutoAttack ran
            on all points, robustbench.json; or a file name that ends in .json, for the report
            alone; None writes nothing.
        before: the settings without the options of the command line; an option that changes a
            setting which nothing uses is refused. None skips this check.

    Raises:
        ValueError: for an unknown attack, illegal settings, or a model, checkpoint and data that do
            not fit together.
    """
    _check_numbers(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    threat, device = config.threat.build(), device_of(config.device)
    attacks = [attack_by_name(name, config, threat) for name in config.attacks]
    certifier = certifier_of(
        config.certify, threat, seconds=config.seconds, journal=journal_of(config, "proofs")
    )
    if before is not None:
        check_options(config, before)
    radii = config.radii or around(threat)
    for radius in radii:
        parse_eps(radius)  # an illegal radius is found now and not after hours
    data = _data(config.data)
    for attack in attacks:
        if isinstance(attack, AutoAttack):
            attack.check_classes(data.classes)  # found now and not after hours
    model = _network(config, data, config.checkpoint)
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
        _make_folder(folder)
    images = None if folder is None else folder / "adversarial.pt"
    checks = _checks(model, test, config, data, threat)  # before the attacks, because it is quick
    report = measure(
        model,
        test,
        attacks=attacks,
        seed=config.seed,
        batch_size=config.batch_size,
        certifier=certifier,
        adversarial=images,
    )
    if checks is not None and checks.failed:
        report = dataclasses.replace(report, findings=(*report.findings, checks.verdict))
    found = Evaluated(report, checks, radii, _unchecked(threat) if config.checks else "")
    if folder is not None and images is not None:
        _write(folder, found, config, data, torch.load(images, weights_only=True))
    elif out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, _json(report, config))
    return found


def _check_numbers(config: EvaluateConfig) -> None:
    """Raise a ValueError for a number of threads, points per batch or checks that is too small."""
    for name, value, least in (
        ("threads", config.threads, 1),
        ("batch_size", config.batch_size, 1),
        ("checks", config.checks, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; legal: {least} or more.")


def _data(config: DataConfig) -> Data:
    """Load the data set of an evaluation, without extra training points."""
    check_folder(config)
    return load_data(
        config.name,
        folder=config.folder,
        validation=config.validation,
        image_size=config.image_size,
        augmentation=config.augmentation,  # some augmentations also crop the test points
        test=config.test,
    )


def _make_folder(folder: Path) -> None:
    """Make the folder for the reports.

    Raises:
        ValueError: if ``folder`` is a file or the folder of a run.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give --out a folder, or a name in .json.")
    if (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a run's own folder, whose report would be lost; give --out another, "
            f"such as {folder / 'evaluation'}."
        )
    folder.mkdir(parents=True, exist_ok=True)


def _network(config: EvaluateConfig, data: Data, weights: Path) -> nn.Module:
    """Build the model of an evaluation and load weights from a file into it.

    Raises:
        ValueError: if the weights do not fit the model, or the model does not fit the data.
    """
    model = build_model(config.model, classes=data.classes, shape=data.shape)
    load_weights(model, weights)
    check_takes(model, config.model, example_of(data.shape), data.classes)
    return model


def _unchecked(threat: ThreatModel) -> str:
    """Return why there are no checks for obfuscated gradients under a threat model.

    The text is empty if there are checks.
    """
    if threat.norm != "L1" and threat.eps > 0:
        return ""
    return f"no checks for obfuscated gradients in {threat}: they take a radius in Linf or L2"


def _checks(
    model: nn.Module, test: Dataset[Any], config: EvaluateConfig, data: Data, threat: ThreatModel
) -> Obfuscation | None:
    """Check the first test points for obfuscated gradients.

    Args:
        model: network to check.
        test: test points, pairs (x, y).
        config: settings of the evaluation: number of points, seed, and file of the dense network;
            adversarial examples for the dense network are tried on ``model``.
        data: data set of the evaluation.
        threat: norm, eps and bounds of the inputs.

    Returns:
        Obfuscation: the checks; None if none are requested, or if the threat model has none.
    """
    if not config.checks or _unchecked(threat):
        return None
    device = next(model.parameters()).device
    x, y = first_points(test, config.checks, device)
    parent = None if config.parent is None else _network(config, data, config.parent).to(device)
    return obfuscation(model, x, y, threat, parent=parent, seed=config.seed)


def _write(
    folder: Path, found: Evaluated, config: EvaluateConfig, data: Data, images: dict[str, Tensor]
) -> None:
    """Write report.json, report.txt, report.html and, after a full AutoAttack, robustbench.json.

    Args:
        folder: folder of the files.
        found: results of the evaluation.
        config: settings of the evaluation.
        data: data set of the evaluation.
        images: clean inputs under ``"inputs"``, and adversarial examples by attack name.
    """
    report, name = found.report, f"{config.model}, {data.name}"
    write_text(folder / "report.json", _json(report, config))
    write_text(folder / "report.txt", f"{found}\n")
    about = f"{config.checkpoint}; test points of {data.name}, the first {report.n}"
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
    """Return a report as JSON, with the settings and library versions that produced it."""
    made = {"settings": as_plain(config), "versions": versions()}
    return json.dumps({**json.loads(report.to_json()), "evaluation": made}, indent=1)
