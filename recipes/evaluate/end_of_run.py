"""Evaluation of the network that a run has trained, with the run's own settings.

``evaluate_run`` writes the run's report.json, and examples.safetensors with a few test points for
the page of the run. ``check_evaluation`` finds settings that cannot work before the training
starts.
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
from robust_plugin.recipes.evaluate.expected_time import expected_seconds
from robust_plugin.recipes.evaluate.measure import measure, strongest_pgd
from robust_plugin.recipes.evaluate.plan import plan_of_run
from robust_plugin.recipes.evaluate.security_curve import measured_curve, points_of_curve
from robust_plugin.recipes.evaluate.under_attack import Watched, predictions_of, save_examples
from robust_plugin.recipes.evaluate.unfinished import PREFIX, unfinished_folder
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.runtime.progress import shows_progress
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.training_findings import training_findings
from robust_plugin.runtime.files import write_text


def check_evaluation(run: Run) -> None:
    """Check before training that the evaluation settings can work on the data of a run.

    Raises:
        ValueError: if the data has too few classes for AutoAttack, or if the certifier does not
            support the threat model.
    """
    if run.config.evaluation.autoattack:
        try:
            _autoattack(run, None).check_classes(run.data.classes)
        except ValueError as error:
            raise ValueError(
                f"{error} On the command line, --evaluation.autoattack 0 leaves AutoAttack out."
            ) from error
    _certifier(run, None)


def evaluate_run(
    run: Run,
    model: nn.Module,
    *,
    small: nn.Module | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Report:
    """Evaluate a finished network on the test points, and write model.safetensors and report.json.

    If the folder holds a report with the same settings, that report is returned instead; only a
    security curve that it lacks is measured. Several processes share the points of AutoAttack; each
    process does the rest of the evaluation for itself, except randomized smoothing and the security
    curve, which only the first process measures.

    Args:
        run: the run that trained the network.
        model: the network without a pruner, pruned weights set to zero.
        small: the same network without its pruned channels, which is faster to attack and is
            evaluated instead of ``model``; None evaluates ``model``.
        kept: [number kept, size] by channel group, for the report; None counts the weights of each
            layer.
    """
    path, settings = run.folder / "report.json", run.config.evaluation
    identity, measured = _identity(run), (model if small is None else small).eval()
    if path.is_file():
        content = json.loads(path.read_text())
        if content.get("identity") == identity:
            _complete(run, measured, path, content)
            return Report.from_json(json.dumps(content["report"]))
    journal = unfinished_folder(run.folder, identity)
    attack = Watched(strongest_pgd(run.threat, steps=settings.steps, restarts=settings.restarts))
    expect_evaluation(run, measured, trained=True)
    report = _measured(run, measured, attack, journal)
    wait_for_all()  # after this, no process writes to the journal
    if not is_first():
        return report
    smoothing = _smoothed(run, measured, journal) if settings.smooth else None
    curve = measured_curve(run, measured)
    run.save_model(model, run.folder / "model.safetensors")
    if kept is None:
        table = sparsity(model, run.example)
        kept = {layer.name: [layer.kept, layer.size] for layer in table.layers}
    right, examples = report.flags["clean"], run.folder / "examples.safetensors"
    save_examples(attack, measured, right, examples)
    content = {
        "data": run.data.name,
        "class_names": run.data.class_names,
        "report": json.loads(report.to_json()),
        "smoothing": smoothing,
        "security_curve": curve and curve.plain(),
        "kept": kept,
        "findings": findings_of(run),
        "attacked": predictions_of(attack, measured, run.data.test, right, settings.batch_size),
        "identity": identity,
        "settings": as_plain(run.config),
        "versions": versions(),
    }
    write_text(path, json.dumps(content, indent=1))
    for unfinished in run.folder.glob(f"{PREFIX}*"):
        shutil.rmtree(unfinished)
    return report


def _identity(run: Run) -> dict[str, Any]:
    """Return the settings that the figures of a report depend on, for the report itself.

    The number of points of the security curve is none of them: a report from before there were
    curves, or with a curve of other points, stays valid.
    """
    evaluation = as_plain(run.config.evaluation)
    del evaluation["curve"]
    return {**run.identity, "evaluation": evaluation}


def _complete(run: Run, model: nn.Module, path: Path, content: dict[str, Any]) -> None:
    """Measure the security curve that a finished report lacks, and write the report again.

    Args:
        run: the run, whose settings say how many points the curve has.
        model: the network that the report is of.
        path: path of report.json.
        content: what it holds.
    """
    wanted, stored = points_of_curve(run), content.get("security_curve")
    if is_first() and wanted and (stored is None or len(stored["distances"]) != wanted):
        curve = measured_curve(run, model)
        write_text(
            path, json.dumps({**content, "security_curve": curve and curve.plain()}, indent=1)
        )


def findings_of(run: Run) -> list[str]:
    """Return what the log of a finished run says is wrong with its training, in sentences."""
    path = run.folder / "log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    n = len(run.data.validation)  # type: ignore[arg-type]
    return list(training_findings(records, classes=run.data.classes, n=n))


def expect_evaluation(run: Run, model: nn.Module, *, trained: bool) -> None:
    """Estimate how long the evaluation of a run takes, if its progress is shown.

    Args:
        run: the run.
        model: network that is measured on a few validation points.
        trained: whether it is the finished network; an estimate with another one is higher.
    """
    if shows_progress():
        run.expected = expected_seconds(
            model.eval(),
            run.data.validation,
            run.threat,
            plan_of_run(run),
            classes=run.data.classes,
            trained=trained,
        )
        run.progress.expect(run.expected)


def _measured(run: Run, model: nn.Module, attack: Attack, journal: Path) -> Report:
    """Attack the test points, and prove them if the settings ask for it.

    Args:
        run: run whose test points and evaluation settings are used.
        model: network to evaluate.
        attack: attack on all test points; AutoAttack follows if the settings ask for it.
        journal: folder for finished parts, from which an interrupted evaluation continues.
    """
    settings = run.config.evaluation
    attacks: list[Attack] = [attack]
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
        progress=run.progress,
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
        model,
        run.data.test,
        settings.smooth,
        smoothed,
        run.folder,
        journal=journal / "smoothing",
        progress=run.progress,
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
