"""Evaluation of the network that a run has trained, with the run's own settings.

``evaluate_run`` writes the run's report.json. ``check_evaluation`` finds settings that cannot work
before the training starts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.contract import Attack
from robust_plugin.certificates.contract import Certifier
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.evaluation.report import Report
from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.evaluate.certifiers import certifier_of, smooth
from robust_plugin.recipes.evaluate.measure import measure, strongest_pgd
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of

_UNFINISHED = "unfinished-evaluation-"


def check_evaluation(run: Run) -> None:
    """Check before training that the evaluation settings can work on the data of a run.

    Raises:
        ValueError: if the data has too few classes for AutoAttack, or if the certifier does not
            support the threat model.
    """
    if run.config.evaluation.autoattack:
        _autoattack(run, None).check_classes(run.data.classes)
    _certifier(run, None)


def evaluate_run(
    run: Run,
    model: nn.Module,
    *,
    small: nn.Module | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Report:
    """Evaluate a finished network on the test points, and write model.safetensors and report.json.

    If the folder holds a report with the same settings, that report is returned instead. Several
    processes share the points of AutoAttack; each process does the rest of the evaluation for
    itself, except randomized smoothing, which only the first process does.

    Args:
        run: the run that trained the network.
        model: the network without a pruner, pruned weights set to zero.
        small: the same network without its pruned channels, which is faster to attack and is
            evaluated instead of ``model``; None evaluates ``model``.
        kept: [number kept, size] by channel group, for the report; None counts the weights of each
            layer.
    """
    path, settings = run.folder / "report.json", run.config.evaluation
    identity = {**run.identity, "evaluation": as_plain(settings)}
    if path.is_file():
        content = json.loads(path.read_text())
        if content.get("identity") == identity:
            return Report.from_json(json.dumps(content["report"]))
    # The name has a hash of the settings: only an evaluation with the same settings continues it.
    journal = run.folder / f"{_UNFINISHED}{seed_of(json.dumps(identity)):016x}"
    measured = (model if small is None else small).eval()
    report = _measured(run, measured, journal)
    wait_for_all()  # after this, no process writes to the journal
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
    for unfinished in run.folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished)
    return report


def _measured(run: Run, model: nn.Module, journal: Path) -> Report:
    """Attack the test points, and prove them if the settings ask for it.

    Args:
        run: run whose test points and evaluation settings are used.
        model: network to evaluate.
        journal: folder for finished parts, from which an interrupted evaluation continues.
    """
    settings = run.config.evaluation
    attacks: list[Attack] = [
        strongest_pgd(run.threat, steps=settings.steps, restarts=settings.restarts)
    ]
    limits = {"certified": settings.verify} if settings.verify else {}
    if settings.autoattack:
        autoattack = _autoattack(run, journal / "autoattack")
        attacks.append(autoattack)
        limits[autoattack.name] = settings.autoattack
    return measure(
        model,
        run.data.test,
        attacks=attacks,
        seed=run.config.seed,
        batch_size=settings.batch_size,
        certifier=_certifier(run, journal / "proofs"),
        limits=limits,
    )


def _autoattack(run: Run, journal: Path | None) -> AutoAttack:
    """Return the AutoAttack of a run's evaluation.

    Args:
        run: run whose settings are used.
        journal: folder for finished batches, from which an interrupted attack continues; None
            writes no journal.
    """
    version, seed = run.config.evaluation.version, run.config.seed
    return AutoAttack(run.threat, version=version, seed=seed, journal=journal)


def _smoothed(run: Run, model: nn.Module, journal: Path) -> dict[str, Any]:
    """Certify the first test points of a run by randomized smoothing; return values for JSON.

    Args:
        run: run whose test points and evaluation settings are used.
        model: the base classifier.
        journal: folder for finished parts, from which an interrupted evaluation continues.
    """
    settings, sigma = run.config.evaluation, run.config.objective.sigma
    smoothed = Smoothed(sigma, n=settings.votes, seed=run.config.seed)
    return smooth(
        model, run.data.test, settings.smooth, smoothed, run.folder, journal=journal / "smoothing"
    )


def _certifier(run: Run, journal: Path | None) -> Certifier | None:
    """Return the certifier of a run's evaluation; None if no points are to be proved.

    Args:
        run: run whose settings are used.
        journal: folder for finished batches, from which an interrupted proof continues; None writes
            no journal.
    """
    settings = run.config.evaluation
    name = settings.certify if settings.verify else "none"
    return certifier_of(name, run.threat, seconds=settings.seconds, journal=journal)
