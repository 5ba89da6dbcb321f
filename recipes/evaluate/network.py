"""The command ``evaluate``: measure any network with a checkpoint, such as that of a run.

``evaluate_network`` attacks the network, proves points, checks for obfuscated gradients, and writes
the reports.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from robust_plugin.evaluation.obfuscated_gradients import obfuscation
from robust_plugin.evaluation.obfuscation_verdict import Obfuscation
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.evaluate.expected_time import expected_seconds
from robust_plugin.recipes.evaluate.measure import first_points, measure
from robust_plugin.recipes.evaluate.network_facts import NetworkFacts, network_facts
from robust_plugin.recipes.evaluate.page import page
from robust_plugin.recipes.evaluate.plan import plan_of_evaluation
from robust_plugin.recipes.evaluate.prepared import methods_of, network_of, prepared, refuse_folder
from robust_plugin.recipes.evaluate.unfinished import FinishedParts, finished_parts
from robust_plugin.recipes.runtime.folder_lock import locked
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import is_first
from robust_plugin.recipes.runtime.progress import RunProgress, shows_progress
from robust_plugin.runtime.files import check_writable, write_text
from robust_plugin.runtime.progress import ProgressOption
from robust_plugin.threat.model import ThreatModel


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
    config: EvaluateConfig,
    out: Path | None = None,
    *,
    before: EvaluateConfig | None = None,
    progress: ProgressOption = False,
    command: str = "",
) -> Evaluated:
    """Evaluate a network on the first ``config.n`` test points, and write the results.

    Args:
        config: settings of the evaluation.
        out: folder for report.json, report.html, report.txt, adversarial.pt and, if AutoAttack ran
            on all points, robustbench.json; or a file name that ends in .json, for the report
            alone; None writes nothing. Under torchrun the first process writes.
        before: the settings without the options of the command line; an option that changes a
            setting which nothing uses is refused. None skips this check.
        progress: True for progress bars, or a function that takes a ``Progress``.
        command: command line of the evaluation, for report.html; empty if it is not known.

    Raises:
        ValueError: for an unknown attack, illegal settings, or a model, checkpoint and data that do
            not fit together.
        KeyboardInterrupt: at an interruption; the message says how to continue.
    """
    with finished_parts() as parts:
        return _evaluated(config, out, before, progress, command, parts)


def _evaluated(
    config: EvaluateConfig,
    out: Path | None,
    before: EvaluateConfig | None,
    progress: ProgressOption,
    command: str,
    parts: FinishedParts,
) -> Evaluated:
    """Evaluate as ``evaluate_network`` does, with its arguments.

    Args:
        config: settings of the evaluation.
        out: folder or .json file for the reports; None writes none.
        before: the settings without the options of the command line; None checks no options.
        progress: True for progress bars, or a function that takes a ``Progress``.
        command: command line of the evaluation, for report.html.
        parts: where finished parts are kept, which is chosen once the network is known.
    """
    if out is not None and is_first():
        check_writable(out.parent if out.suffix == ".json" else out)  # found now, not after hours
    work = prepared(config, before)
    model, data, test, threat = work.model, work.data, work.test, work.threat
    folder = out if out is not None and out.suffix != ".json" else None
    if folder is not None:
        refuse_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    images = None if folder is None or not is_first() else folder / "adversarial.pt"
    if isinstance(progress, RunProgress) and shows_progress():
        plan, classes = plan_of_evaluation(config, work), data.classes
        progress.expect(expected_seconds(model, test, threat, plan, classes=classes))
    # before the attacks, because it is quick
    checks = _checks(model, test, config, data, threat, progress)
    parts.begin(config, out, model)
    attacks, certifier = methods_of(dataclasses.replace(config, journal=parts.folder), threat)
    with locked(parts.folder) if parts.folder is not None and is_first() else nullcontext():
        report = measure(
            model,
            test,
            attacks=attacks,
            seed=config.seed,
            batch_size=config.batch_size,
            certifier=certifier,
            adversarial=images,
            progress=progress,
        )
    if checks is not None and checks.failed:
        report = dataclasses.replace(report, findings=(*report.findings, checks.verdict))
    found = Evaluated(report, checks, work.radii, _unchecked(threat) if config.checks else "")
    if folder is not None and images is not None:
        stored = torch.load(images, weights_only=True)
        facts = network_facts(model, report, stored, data.class_names, batch_size=config.batch_size)
        _write(folder, found, config, data, facts, command)
    elif out is not None and is_first():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, _json(report, config, data))
    return found


def _unchecked(threat: ThreatModel) -> str:
    """Return why there are no checks for obfuscated gradients under a threat model.

    The text is empty if there are checks.
    """
    if threat.norm != "L1" and threat.eps > 0:
        return ""
    return f"no checks for obfuscated gradients in {threat}: they take a radius in Linf or L2"


def _checks(
    model: nn.Module,
    test: Dataset[Any],
    config: EvaluateConfig,
    data: Data,
    threat: ThreatModel,
    progress: ProgressOption,
) -> Obfuscation | None:
    """Check the first test points for obfuscated gradients.

    Args:
        model: network to check.
        test: test points, pairs (x, y).
        config: settings of the evaluation: number of points, seed, and file of the dense network;
            adversarial examples for the dense network are tried on ``model``.
        data: data set of the evaluation.
        threat: norm, eps and bounds of the inputs.
        progress: True for a progress bar, or a function that takes a ``Progress``.

    Returns:
        Obfuscation: the checks; None if none are requested, or if the threat model has none.
    """
    if not config.checks or _unchecked(threat):
        return None
    device = next(model.parameters()).device
    x, y = first_points(test, config.checks, device)
    parent = None if config.parent is None else network_of(config, data, config.parent).to(device)
    return obfuscation(model, x, y, threat, parent=parent, seed=config.seed, progress=progress)


def _write(
    folder: Path,
    found: Evaluated,
    config: EvaluateConfig,
    data: Data,
    facts: NetworkFacts,
    command: str,
) -> None:
    """Write report.json, report.txt, report.html and, after a full AutoAttack, robustbench.json.

    Args:
        folder: folder of the files.
        found: results of the evaluation.
        config: settings of the evaluation.
        data: data set of the evaluation.
        facts: size, predictions and examples of the network.
        command: command line of the evaluation.
    """
    report, name = found.report, f"{config.model} on {data.name}"
    write_text(folder / "report.json", _json(report, config, data))
    write_text(folder / "report.txt", f"{found}\n")
    about = (
        f"The network is {config.checkpoint}, and the points are the first {report.n:,} test "
        f"points of {data.name}. The threat model is {report.threat or 'none'}; the seed is "
        f"{config.seed}."
    )
    write_text(
        folder / "report.html",
        page(
            report,
            title=f"Robustness of {name}",
            about=about,
            network=facts,
            checks=found.checks,
            radii=found.radii,
            settings=as_plain(config),
            command=command,
        ),
    )
    if len(report.flags.get("AutoAttack", ())) == report.n:
        entry = report.robustbench(dataset=data.name, architecture=config.model)
        write_text(folder / "robustbench.json", json.dumps(entry, indent=2))


def _json(report: Report, config: EvaluateConfig, data: Data) -> str:
    """Return a report as JSON, with the settings and library versions that produced it."""
    made = {"settings": as_plain(config), "versions": versions()}
    plain = {**json.loads(report.to_json()), "class_names": data.class_names, "evaluation": made}
    return json.dumps(plain, indent=1)
