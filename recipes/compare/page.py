"""The HTML page of a comparison: one file with its table, paired differences and plots inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from robust_plugin.recipes.compare.cells import Cell, conditions, pruned_densities
from robust_plugin.recipes.compare.differences import Difference, differences
from robust_plugin.recipes.compare.tables import interval_of
from robust_plugin.recipes.pages.html import data_url, load_template

_TERMS = (
    "All rows of a seed start from its dense network and train the same number of epochs in all, "
    "if the settings below do not say otherwise; the fine-tuning learning rate of each row and "
    "density was chosen by mean robust accuracy on validation, and the test points were looked at "
    "once, at the end."
)


def comparison_page(
    cells: Sequence[Cell],
    *,
    title: str,
    data: str,
    threat: str,
    settings: Mapping[str, Any],
    plots: Mapping[str, Path],
) -> str:
    """Return the HTML page of a comparison.

    Args:
        cells: results of the dense network and of all methods at all densities.
        title: title and heading of the page.
        data: name of the data set.
        threat: the threat model as text.
        settings: settings of the comparison as plain values.
        plots: PNG files by name: ``"densities"``, ``"kept"`` and ``"curves"``.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    several = len(cells[0].reports) > 1
    gains = [each for density in pruned_densities(cells) for each in differences(cells, density)]
    paired = "95 % t interval over seeds." if several else "95 % paired bootstrap over the points."
    template = load_template("comparison.html.j2")
    return str(
        template.render(
            title=title,
            conditions=conditions(cells, data=data, threat=threat),
            terms=_TERMS,
            interval=interval_of(cells),
            measures=cells[0].rows,
            rows=[_row(cell) for cell in cells],
            paired=paired,
            gains=[_gain(each) for each in gains],
            settings=yaml.safe_dump(dict(settings), sort_keys=False),
            **{name: data_url(path.read_bytes()) for name, path in plots.items()},
        )
    )


def _row(cell: Cell) -> list[str]:
    """Return the columns of the table for one method at one density, as text."""
    lr = "" if cell.lr is None else f"{cell.lr:g}"
    if cell.diverged:
        lr += f" ({', '.join(f'{each:g}' for each in cell.diverged)} diverged)"
    validation = "" if cell.validation is None else f"{100 * cell.validation:.1f}"
    shown = [cell.shown(measure) for measure in cell.rows]
    return [cell.row, f"{100 * cell.density:g} %", lr, validation, *shown]


def _gain(each: Difference) -> list[str]:
    """Return the columns of the table of differences for one paired difference, as text."""
    return [
        f"{each.first} minus {each.second}",
        f"{100 * each.density:g} %",
        each.measure,
        f"{100 * each.mean:+.1f}",
        f"[{100 * each.low:+.1f}, {100 * each.high:+.1f}]",
        ", ".join(f"{p:.2g}" for p in each.p_values),
    ]
