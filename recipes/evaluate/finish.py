"""Evaluate the network that a run has trained, and write the run's report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.certificates.contract import Certifier
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.evaluation.report import Report
from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.data.datasets import loader
from robust_plugin.recipes.evaluate.certifiers import certifier_of, smooth
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of

_UNFINISHED = "unfinished-evaluation-"


def check_evaluation(run: Run) -> None:
    """Refuse evaluation settings that cannot work on this run's data, before training starts.

    Raises:
        ValueError: for too few classes for AutoAttack, or a certifier that does not take the
            threat model.
    """
    if run.config.evaluation.autoattack:
        attack = AutoAttack(run.threat, version=run.config.evaluation.version)
        attack.check_classes(run.data.classes)
    _certifier(run, None)


def evaluate_run(
    run: Run,
    model: nn.Module,
    *,
    small: nn.Module | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Report:
    """Evaluate a finished network on the test points, or return the report that is there.

    Several processes share AutoAttack's points; the rest each does for itself, and smoothing
    the first alone. Writes model.safetensors and report.json.

    Args:
        run: the run that trained it.
        model: the plain network.
        small: the same without the channels that are zero, which is faster to attack.
        kept: by group, how many of how many are kept; default the weights of each layer.
    """
    path, settings = run.folder / "report.json", run.config.evaluation
    identity = {**run.identity, "evaluation": as_plain(settings)}
    if path.is_file():
        content = json.loads(path.read_text())
        if content.get("identity") == identity:
            return Report.from_json(json.dumps(content["report"]))
    # Where an interrupted evaluation by these settings goes on.
    journal = run.folder / f"{_UNFINISHED}{seed_of(json.dumps(identity)):016x}"
    measured = (model if small is None else small).eval()
    report = _measured(run, measured, journal)
    wait_for_all()  # nobody writes to the journal from here on
    if not is_first():
        return report
    smoothing = _smoothed(run, measured, journal) if settings.smooth else None
    run.save_model(model, run.folder / "model.safetensors")
    if kept is None:
        table = sparsity(model, run.example)
        kept = {layer.name: [layer.kept, layer.size] for layer in table.layers}
    content = {
        "data": run.data.name,
        "report": json.loads(report.to_json()),
        "smoothing": smoothing,
        "kept": kept,
        "identity": identity,
        "settings": as_plain(run.config),
        "versions": versions(),
    }
    write_text(path, json.dumps(content, indent=1))
    for left in run.folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    return report


def _measured(run: Run, model: nn.Module, journal: Path) -> Report:
    """Attack and prove the test points."""
    settings, seed = run.config.evaluation, run.config.seed
    attacks: list[Attack] = [
        pgd(run.threat, steps=settings.steps, restarts=settings.restarts, keep="best")
    ]
    limits = {"certified": settings.verify} if settings.verify else {}
    if settings.autoattack:
        cascade = AutoAttack(
            run.threat, version=settings.version, seed=seed, journal=journal / "autoattack"
        )
        attacks.append(cascade)
        limits[cascade.name] = settings.autoattack
    points = loader(run.data.test, batch_size=settings.batch_size, seed=0, epoch=0, shuffle=False)
    certifier = _certifier(run, journal / "proofs")
    torch.manual_seed(seed_of(seed, "evaluation"))
    return evaluate(model, points, attacks=attacks, certifier=certifier, limits=limits)


def _smoothed(run: Run, model: nn.Module, journal: Path) -> dict[str, Any]:
    """Certify the first test points by votes under noise."""
    settings, sigma = run.config.evaluation, run.config.objective.sigma
    smoothed = Smoothed(sigma, n=settings.votes, seed=run.config.seed)
    return smooth(
        model, run.data.test, settings.smooth, smoothed, run.folder, journal=journal / "smoothing"
    )


def _certifier(run: Run, journal: Path | None) -> Certifier | None:
    settings = run.config.evaluation
    name = settings.certify if settings.verify else "none"
    return certifier_of(name, run.threat, seconds=settings.seconds, journal=journal)
