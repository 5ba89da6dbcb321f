"""The HTML page of an evaluation: one file with all tables, curves and images inside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from torch import Tensor

from robust_plugin.evaluation.obfuscation_verdict import Obfuscation
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.pages.html import data_url, load_template
from robust_plugin.recipes.pages.plots import pyplot

# Number of fooled points that the page shows.
_EXAMPLES = 6


def page(
    report: Report,
    *,
    title: str,
    about: str,
    checks: Obfuscation | None = None,
    radii: Sequence[str] = (),
    images: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the HTML page of an evaluation.

    Args:
        report: results of the evaluation.
        title: title and heading of the page.
        about: one sentence on the data and the conditions.
        checks: checks for obfuscated gradients; None leaves out their section.
        radii: radii in the table of robust accuracy against eps, as text such as ``"8/255"``.
        images: clean inputs under ``"inputs"``, and adversarial examples by attack name, as
            ``evaluate(..., adversarial=...)`` writes them; None leaves out the examples.
        settings: settings of the evaluation as plain values; None leaves out their section.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    curve = report.curve
    template = load_template("evaluation.html.j2")
    return str(
        template.render(
            title=title,
            about=about,
            rows=[_row(report, name) for name in _names(report)],
            proofs=report.proofs,
            certifier=report.certifier,
            findings=[f for f in report.findings if checks is None or f != checks.verdict],
            checks=checks,
            marks={True: "holds", False: "fails", None: "not run"},
            curve=None if curve is None else _curve(report),
            radii="" if curve is None else curve.table(radii),
            classes=_classes(report),
            examples=None if images is None else _examples(report, images),
            settings=settings and yaml.safe_dump(dict(settings), sort_keys=False),
        )
    )


def _names(report: Report) -> list[str]:
    """Return the names of the accuracies that the page shows.

    They are "clean", the attacks, "worst case" if there are two attacks or more, and "certified" if
    points were proved.
    """
    names = [*report.rows, *(["worst case"] if len(report.rows) > 2 else [])]
    return [*names, *(["certified"] if report.certified is not None else [])]


def _row(report: Report, name: str) -> dict[str, Any]:
    """Return one accuracy of a report with its interval, number of points and remark, as text.

    Args:
        report: results of the evaluation.
        name: "clean", the name of an attack, "worst case" or "certified".

    Returns:
        dict: the columns of the page's table by name.
    """
    low, high = report.interval(name)
    n = {"worst case": len(report.worst), "certified": len(report.certified or ())}
    return {
        "name": _shown(report, name),
        "accuracy": f"{100 * report.accuracy(name):.1f}",
        "low": f"{100 * low:.1f}",
        "high": f"{100 * high:.1f}",
        "n": n[name] if name in n else len(report.flags[name]),
        "balanced": f"{100 * report.balanced(name):.1f}",
        "remark": report.remarks.get(name, ""),
    }


def _shown(report: Report, name: str) -> str:
    """Return the name of an accuracy, with its threat model if the report has more than one."""
    threats = {**report.threats, "certified": report.certified_threat}
    several = len({threat for threat in threats.values() if threat is not None}) > 1
    threat = threats.get(name)
    return name if threat is None or not several else f"{name}, {threat}"


def _curve(report: Report) -> str:
    """Return the plot of robust accuracy against eps as a data URL."""
    curve = report.curve
    steps = () if curve is None else curve.steps()
    figure, axes = pyplot().subplots(figsize=(7, 3.6))
    n = len(curve.distances) if curve is not None else 1
    x = [0.0, *(radius for radius, _ in steps)]
    y = [report.accuracy(), *(accuracy for _, accuracy in steps)]
    axes.step(x, [100 * value for value in y], where="post", label=f"found distances, n={n}")
    for row, threat in report.threats.items():
        if curve is not None and threat.norm == curve.norm:
            low, high = report.interval(row)
            value = report.accuracy(row)
            error = [[100 * (value - low)], [100 * (high - value)]]
            axes.errorbar([threat.eps], [100 * value], yerr=error, fmt="o", ms=4, label=row)
    axes.set(xlabel="eps, input units", ylabel="robust accuracy, %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def _classes(report: Report) -> str:
    """Return the bar chart of accuracy by class as a data URL."""
    figure, axes = pyplot().subplots(figsize=(7, 3))
    names = _names(report)
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        found = report.per_class(name)
        where = [label + (place - len(names) / 2 + 0.5) * width for label in found]
        axes.bar(where, [100 * value for value in found.values()], width, label=name)
    axes.set(xlabel="class", ylabel="accuracy, %", ylim=(0, 100))
    axes.set_xticks(sorted(set(report.labels)))
    axes.legend(
        fontsize=8, ncols=min(4, len(names)), loc="upper center", bbox_to_anchor=(0.5, -0.18)
    )
    return _png(figure)


def _examples(report: Report, images: Mapping[str, Tensor]) -> str | None:
    """Return a plot of the first fooled points with their adversarial examples, as a data URL.

    None if the inputs are not images of one or three channels, or if no point was fooled.

    Args:
        report: results of the evaluation.
        images: clean inputs under ``"inputs"``, and adversarial examples by attack name.
    """
    clean = images["inputs"]
    if clean.dim() != 4 or clean.shape[1] not in (1, 3):
        return None
    shown: list[tuple[int, str]] = []
    for row in report.rows[1:]:
        flags = zip(report.flags["clean"], report.flags[row], strict=False)
        fooled = [point for point, (right, robust) in enumerate(flags) if right and not robust]
        shown += [(point, row) for point in fooled if point not in {p for p, _ in shown}]
    if not shown:
        return None
    shown = sorted(shown)[:_EXAMPLES]
    figure, axes = pyplot().subplots(3, len(shown), figsize=(1.5 * len(shown), 4.6), squeeze=False)
    for column, (point, row) in enumerate(shown):
        x, x_adv = clean[point], images[row][point]
        delta = x_adv - x
        each = (x, x_adv, 0.5 + delta / (2 * delta.abs().max().clamp(min=1e-12)))
        for panel, image in zip(axes[:, column], each, strict=True):
            panel.imshow(image.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray")
            panel.axis("off")
        axes[0, column].set_title(f"{point}: class {report.labels[point]}", fontsize=7)
        axes[1, column].set_title(row, fontsize=6)
        axes[2, column].set_title(f"largest {float(delta.abs().max()):.3g}", fontsize=7)
    return _png(figure)


def _png(figure: Any) -> str:
    """Return a matplotlib figure as a data URL, and close the figure."""
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot().close(figure)
    return data_url(buffer.getvalue())
