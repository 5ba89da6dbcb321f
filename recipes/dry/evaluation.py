"""Dry run of ``evaluate``: what it measures, how long that takes, and which files it writes.

A few test points are attacked and proved; nothing is written. ``expected_time.py`` in the room
``evaluate`` says how the times are estimated.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.evaluate.expected_time import Expected, Sample, expected_times, sampled
from robust_plugin.recipes.evaluate.plan import Plan, plan_of_evaluation
from robust_plugin.recipes.evaluate.prepared import prepared, refuse_folder
from robust_plugin.recipes.runtime.progress import clock
from robust_plugin.runtime.tables import table

_FILES = ("report.html", "report.json", "report.txt", "adversarial.pt")


def dry_evaluation(
    config: EvaluateConfig, out: Path | None, *, before: EvaluateConfig | None = None
) -> str:
    """Return the plan of an evaluation as text: tasks, expected times and their ranges, and files.

    Args:
        config: settings of the evaluation.
        out: folder or .json file that the evaluation would write; None for none.
        before: the settings without the options of the command line; None checks no options.

    Raises:
        ValueError: for every mistake that the evaluation itself would refuse, or if torchrun
            started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--dry-run measures one process; leave torchrun out.")
    work = prepared(config, before)
    if out is not None and out.suffix != ".json":
        refuse_folder(out)
    plan = plan_of_evaluation(config, work)
    sample = sampled(work.model, work.test, work.threat, plan)
    times = expected_times(sample, plan, classes=work.data.classes)
    said = how_estimated(sample, plan, str(next(work.model.parameters()).device))
    head = (
        f"evaluate: {config.checkpoint}, {config.model} on {plan.points:,} test points of "
        f"{work.data.name}, {work.threat}"
    )
    parts = [
        "\n".join([head, *time_table(times)]),
        "\n".join(line for text in said for line in textwrap.wrap(text, 100)),
        _left_out(config),
        _files(config, out, plan),
    ]
    return "\n\n".join(part for part in parts if part)


def time_table(times: tuple[Expected, ...]) -> list[str]:
    """Return a table with the expected time and the range of each task, and their sums."""
    rows = [["task", "points", "expected", "range"]]
    for each in times:
        between = f"{clock(each.low)} to {clock(each.high)}"
        rows.append([each.what, f"{each.points:,}", clock(each.seconds), between])
    low, middle, high = (
        sum(values) for values in zip(*((t.low, t.seconds, t.high) for t in times), strict=True)
    )
    rows.append(["sum", "", clock(middle), f"{clock(low)} to {clock(high)}"])
    return table(rows, align="<>>>")


def how_estimated(sample: Sample, plan: Plan, device: str) -> list[str]:
    """Return how the expected times were estimated, in sentences.

    Args:
        sample: what was measured.
        plan: what the evaluation does.
        device: device that it was measured on.
    """
    lines = [
        f"Measured on {device} with {sample.n} test points: {1000 * sample.forward:.3g} ms per "
        f"point for a forward pass, {1000 * sample.gradient:.3g} ms with its gradient. "
        f"{sample.correct} of these points are classified correctly, and {sample.robust} also "
        "under PGD-10.",
        "The expected times are the number of passes of each attack times these figures, where "
        "only points that no attack has fooled yet take all passes. The range is that of the 95 % "
        "interval of the share of such points. Other work on the machine is not in it.",
    ]
    if plan.verify and sample.proofs:
        shown = ", ".join(f"{seconds:.2g}" for seconds in sample.proofs)
        lines.append(
            f"Proofs were timed on {len(sample.proofs)} points: {shown} s. The expected time is "
            "their mean for each point that is classified correctly; the range goes from the "
            "fastest to the slowest. Several points in one batch may take less."
        )
    elif plan.verify:
        lines.append("Proofs were not timed: none of these points is classified correctly.")
    return lines


def _left_out(config: EvaluateConfig) -> str:
    """Return a line with the attacks whose time is not estimated; empty if there are none."""
    names = [name for name in config.attacks if name.startswith("torchattacks.")]
    return f"not estimated: {', '.join(names)}" if names else ""


def _files(config: EvaluateConfig, out: Path | None, plan: Plan) -> str:
    """Return which files the evaluation would write."""
    if out is None:
        return "The evaluation writes no report; --out FOLDER gives it a place."
    if out.suffix == ".json":
        return f"The evaluation writes {out}."
    names = [*_FILES, *(["robustbench.json"] if "standard" in plan.autoattack else [])]
    return f"The evaluation writes {', '.join(names)} to {out}."
