"""The HTML page of a comparison: one file with its table, paired differences and plots inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from robust_plugin.recipes.compare.cells import Cell, conditions, pruned_densities, tables_of
from robust_plugin.recipes.compare.differences import Difference, difference, differences
from robust_plugin.recipes.compare.plots import draw_curves, draw_densities
from robust_plugin.recipes.compare.tables import interval_of
from robust_plugin.recipes.pages.accuracy_rows import Change, Shown
from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.confusion import confusion_of
from robust_plugin.recipes.pages.examples import shown_examples
from robust_plugin.recipes.pages.html import load_template
from robust_plugin.recipes.pages.plots import Kept, draw_kept, legend
from robust_plugin.recipes.pages.run_facts import Example, UnderAttack
from robust_plugin.recipes.pages.security_curve import ShownCurves
from robust_plugin.recipes.pages.svg import drawing, svg_of

_TERMS = (
    "All rows of a seed start from its dense network and train the same number of epochs in all, "
    "if the settings below do not say otherwise. The fine-tuning learning rate of each row and "
    "density was chosen by {accuracy}, and the test points were looked at once, at the end."
)


@dataclass(frozen=True)
class BestNetwork:
    """Predictions of the pruned network with the highest robust accuracy, of the first seed.

    Attributes:
        cell: results of its method at its density.
        attacked: predictions under the attack; None if they were not stored.
        examples: test points without and with the attack.
        class_names: name of each class.
    """

    cell: Cell
    attacked: UnderAttack | None
    examples: Sequence[Example]
    class_names: Sequence[str]


def comparison_page(
    cells: Sequence[Cell],
    *,
    title: str,
    data: str,
    threat: str,
    settings: Mapping[str, Any],
    kept: Mapping[str, Mapping[str, Kept]],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    security: ShownCurves | None = None,
    best: BestNetwork | None = None,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the HTML page of a comparison.

    Args:
        cells: results of the dense network and of all methods at all densities.
        title: title and heading of the page.
        data: name of the data set.
        threat: the threat model as text.
        settings: settings of the comparison as plain values.
        kept: what each layer keeps in the first seed, by title of the plot, then by method.
        curves: robust accuracy on the validation points after each epoch, in [0, 1], by title of
            the plot, then by method.
        security: security curves at the smallest density; None leaves them out.
        best: predictions and examples of the best pruned network; None leaves them out.
        command: command line of the comparison; empty if it is not known.
        versions: versions of the libraries; None if they are not known.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
    """
    gains = [each for density in pruned_densities(cells) for each in differences(cells, density)]
    reach = max((abs(100 * end) for each in gains for end in (each.low, each.high)), default=0)
    several = len(cells[0].reports) > 1
    paired = "95 % t interval over seeds" if several else "Tango's 95 % interval over paired points"
    return str(
        load_template("comparison.html.j2").render(
            title=title,
            conditions=conditions(cells, data=data, threat=threat),
            terms=_terms(settings.get("tuning_seeds", 0)),
            interval=interval_of(cells),
            measure=main_measure(cells),
            cards=_cards(cells),
            tables=[
                {
                    "title": points,
                    "head": ["method", "kept", *measures, "validation", "learning rate"],
                    "rows": [_row(cell, measures) for cell in of_points],
                    "best": [cells.index(cell) for cell in best_cells(cells)],
                }
                for points, (of_points, measures) in tables_of(cells).items()
            ],
            colors=[color_of(cell.row) for cell in cells],
            reading=[(_named(cell), reading(cells, cell)) for cell in cells],
            densities=[
                (row, _svg(partial(draw_densities, cells=cells, row=row), f"{row} accuracy"))
                for row in cells[0].rows
            ],
            security=security,
            paired=paired,
            gains=[_gain(each, max(reach, 1.0)) for each in gains],
            gain_colors=[color_of(each.first) for each in gains],
            kept=[
                (title, _svg(partial(draw_kept, kept=rows), f"kept by layer, {title}", 3.6))
                for title, rows in kept.items()
            ],
            curves=[
                (title, _svg(partial(draw_curves, curves=rows), f"validation, {title}"))
                for title, rows in curves.items()
            ],
            best=best and _named(best.cell),
            examples=best and shown_examples(best.examples, best.class_names),
            confusion=best and best.attacked and _confusion(best, best.attacked),
            settings=yaml.safe_dump(dict(settings), sort_keys=False),
            command=command,
            versions=versions or {},
        )
    )


def _terms(tuning_seeds: int) -> str:
    """Return the sentences on the terms of a comparison.

    Args:
        tuning_seeds: number of seeds, the first ones, on which rates are chosen; 0 for all.
    """
    accuracy = "mean robust accuracy on validation"
    if tuning_seeds:
        which = f"{tuning_seeds} seeds" if tuning_seeds > 1 else "seed"
        accuracy = f"robust accuracy on the validation points of the first {which}"
    return _TERMS.format(accuracy=accuracy)


def main_measure(cells: Sequence[Cell]) -> str:
    """Return the kind of accuracy by which methods are ranked: certified, or the first attack.

    Args:
        cells: results of all methods at all densities.
    """
    rows = cells[0].rows
    return "certified" if "certified" in rows else rows[min(1, len(rows) - 1)]


def best_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cell with the highest main accuracy at each density, without the dense network.

    Args:
        cells: results of all methods at all densities.
    """
    measure = main_measure(cells)
    return [
        max(
            (cell for cell in cells if cell.density == density and cell.lr is not None),
            key=lambda cell: cell.interval(measure)[0],
        )
        for density in pruned_densities(cells)
    ]


def reading(cells: Sequence[Cell], cell: Cell) -> str:
    """Return how to read the row of a cell, in one sentence.

    Args:
        cells: results of all methods at all densities; the dense network is the first one.
        cell: the cell of the row.
    """
    measure, seeds = main_measure(cells), len(cell.reports)
    clean, found = (_shown(cell, row) for row in ("clean", measure))
    points = f"{len(cell.flags(measure)):,} test points"
    of = f"in the mean of {seeds} seeds, " if seeds > 1 else ""
    what = {"clean": "are right", "certified": "are proved"}.get(measure, f"resist {measure}")
    said = (
        f"{of}{clean.value:.1f} % of the test points are right without an attack, and "
        f"{found.value:.1f} % of {points} {what} (95 % interval {found.low:.1f} to "
        f"{found.high:.1f} %)"
    )
    dense = cells[0]
    if cell.lr is None or dense.lr is not None:
        return f"The network before pruning: {said}."
    against = difference(cell, dense, measure)
    by, low, high = (100 * each for each in (against.mean, against.low, against.high))
    where = "above" if by > 0 else "below"
    return (
        f"With {100 * cell.density:g} % kept, {said}; that is {abs(by):.1f} points {where} the "
        f"dense network (95 % interval of the difference: {low:+.1f} to {high:+.1f})."
    )


def _cards(cells: Sequence[Cell]) -> list[tuple[str, str, str]]:
    """Return the first numbers of the page: label, value, and a note below it."""
    measure = main_measure(cells)
    dense = [("dense", cell) for cell in cells if cell.lr is None]
    pruned = [(f"best with {100 * cell.density:g} % kept", cell) for cell in best_cells(cells)]
    cards = []
    for label, cell in dense + pruned:
        found = _shown(cell, measure)
        name = "" if cell.lr is None else f"{cell.row}, "
        note = f"{name}{measure}, {found.low:.1f} to {found.high:.1f} %"
        cards.append((label, f"{found.value:.1f} %", note))
    return cards


def _named(cell: Cell) -> str:
    """Return the name of a method with its density."""
    return cell.row if cell.lr is None else f"{cell.row}, {100 * cell.density:g} % kept"


def _shown(cell: Cell, row: str) -> Shown:
    """Return an accuracy of a cell in per cent with its interval, which is cut at 0 and 100."""
    mean, low, high = (100 * value for value in cell.interval(row))
    return Shown(mean, max(0.0, low), min(100.0, high))


def _row(cell: Cell, measures: Sequence[str]) -> list[Shown | str]:
    """Return the columns of the table for one method at one density."""
    lr = "" if cell.lr is None else f"{cell.lr:g}"
    if cell.diverged:
        lr += f" ({', '.join(f'{each:g}' for each in cell.diverged)} diverged)"
    validation = "" if cell.validation is None else f"{100 * cell.validation:.1f} %"
    shown = [_shown(cell, measure) for measure in measures]
    return [cell.row, f"{100 * cell.density:g} %", *shown, validation, lr]


def _gain(each: Difference, reach: float) -> list[Change | str]:
    """Return the columns of the table of differences for one paired difference."""
    return [
        f"{each.first} minus {each.second}",
        f"{100 * each.density:g} %",
        each.measure,
        Change(100 * each.mean, 100 * each.low, 100 * each.high, reach),
        each.verdict,
        ", ".join(f"{p:.2g}" for p in each.p_values),
    ]


def _confusion(best: BestNetwork, attacked: UnderAttack) -> Any:
    """Return the confusions of the best network under attack."""
    return confusion_of(attacked, best.class_names, color_of(best.cell.row))


def _svg(draw: Any, title: str, height: float = 3.2) -> str:
    """Return an SVG of one plot with its legend.

    Args:
        draw: function that draws on matplotlib axes.
        title: what the plot shows.
        height: height in inches, without the legend.
    """
    figure, axes = drawing(4.8, height)
    draw(axes)
    legend(figure, axes)
    return svg_of(figure, title)
