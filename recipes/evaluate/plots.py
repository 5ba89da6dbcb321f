"""The plots of an evaluation: robust accuracy against the radius, and accuracy by class."""

from __future__ import annotations

from collections.abc import Sequence

from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.pages.accuracy_rows import rows_of, title_of
from robust_plugin.recipes.pages.colors import PLAIN
from robust_plugin.recipes.pages.plots import legend
from robust_plugin.recipes.pages.svg import drawing, short_name, svg_of

# Markers of the rows, in their order.
_MARKERS = "os^vDPX<>*"
# Most classes in the plot; of more, the worst ones are shown.
_CLASSES = 20


def curve_plot(report: Report, curve: SecurityCurve) -> str:
    """Return an SVG of robust accuracy against the radius, with each attack at its own radius.

    Args:
        report: results of the evaluation.
        curve: its security curve.
    """
    figure, axes = drawing(4.8, 3.2)
    curve.plot(axes, label="closest input that was found")
    for line in axes.lines:
        line.set_color(PLAIN)
    for band in axes.collections:
        band.set_color(PLAIN)
    attacks = [(row, threat) for row, threat in report.threats.items() if threat.norm == curve.norm]
    for place, (row, threat) in enumerate(attacks):
        aside = 0.012 * axes.get_xlim()[1] * (place - (len(attacks) - 1) / 2)  # not to overlap
        low, high = report.interval(row)
        value = report.accuracy(row)
        axes.errorbar(
            [threat.eps + aside],
            [100 * value],
            yerr=[[100 * (value - low)], [100 * (high - value)]],
            fmt=_MARKERS[place % len(_MARKERS)],
            ms=5,
            capsize=2,
            color="black",
            label=row,
        )
    axes.set_ylim(0, 102)
    axes.get_legend().remove()
    legend(figure, axes)
    return svg_of(figure, "robust accuracy against the radius of the attack")


def class_plot(report: Report, class_names: Sequence[str]) -> tuple[str, int]:
    """Return an SVG of the accuracy on each class, clean and under each attack.

    Of more than 20 classes it shows the 20 with the lowest accuracy in the last row of the table,
    which is that of the proofs, the worst case or the only attack.

    Args:
        report: results of the evaluation.
        class_names: name of each class.

    Returns:
        tuple: the SVG, and the number of classes in it.
    """
    rows = rows_of(report)
    by_row = {row: report.per_class(row) for row in rows}
    labels = list(by_row[rows[0]])
    if len(labels) > _CLASSES:
        worst = by_row[rows[-1]]
        labels = sorted(labels, key=lambda label: worst.get(label, 1.0))[:_CLASSES]
    figure, axes = drawing(4.8, 0.7 + 0.26 * len(labels))
    for place, label in enumerate(labels):
        found = [100 * each[label] for each in by_row.values() if label in each]
        axes.plot([min(found), max(found)], [place, place], color=PLAIN, alpha=0.4, lw=2)
    for number, (row, each) in enumerate(by_row.items()):
        places = [place for place, label in enumerate(labels) if label in each]
        axes.plot(
            [100 * each[labels[place]] for place in places],
            places,
            _MARKERS[number % len(_MARKERS)],
            ls="",
            ms=6,
            color=PLAIN,
            mfc="white" if row == "clean" else PLAIN,
            label=title_of(report, row),
        )
    axes.set_yticks(range(len(labels)), [short_name(class_names[label]) for label in labels])
    axes.set(xlabel="accuracy, %", xlim=(-2, 102), ylim=(len(labels) - 0.5, -0.5))
    axes.grid(alpha=0.3)
    legend(figure, axes)
    return svg_of(figure, "accuracy by class"), len(labels)
