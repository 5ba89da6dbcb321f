"""A comparison as one HTML file that needs nothing beside it: table, differences and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from robust_plugin.recipes.compare.cells import Cell, conditions, pruned_densities
from robust_plugin.recipes.compare.differences import Difference, differences
from robust_plugin.recipes.compare.tables import interval_of
from robust_plugin.recipes.pages.html import HEAD, STYLE, embedded, environment

_TEMPLATE = (
    HEAD
    + """\
<p class="note">{{ conditions }}</p>
<p class="note">{{ terms }} Intervals: {{ interval }}.</p>
<table><tr><th>method</th><th>kept</th><th>lr</th><th>validation</th>
{% for measure in measures %}<th>{{ measure }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Accuracy against density</h2><img alt="accuracy against density" src="{{ densities }}">
{% if gains %}<h2>Paired differences</h2>
<p class="note">Points of accuracy: learned rows minus the magnitude row that validation chose, or
minus the dense network where there is none, and HYDRA minus LWM at uniform rates; {{ paired }}
p: McNemar's exact test, one a seed.</p>
<table><tr><th>difference</th><th>kept</th><th>by</th><th>points</th><th>interval</th><th>p</th></tr>
{% for row in gains %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
<h2>Share kept by layer</h2><img alt="share kept by layer, first seed" src="{{ kept }}">
<h2>Validation after each epoch</h2><img alt="robust accuracy on validation" src="{{ curves }}">
<h2>Settings</h2><pre>{{ settings }}</pre>
</body></html>
"""
)

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
    """Return the HTML.

    Args:
        cells: the dense network's and the rows'.
        title: of the page.
        data: the data set's name.
        threat: the threat model.
        settings: the comparison's, as plain values.
        plots: PNG files: ``"densities"``, ``"kept"`` and ``"curves"``.

    Raises:
        ImportError: without jinja2.
    """
    several = len(cells[0].reports) > 1
    gains = [each for density in pruned_densities(cells) for each in differences(cells, density)]
    paired = "95 % t interval over seeds." if several else "95 % paired bootstrap over the points."
    template = environment().from_string(_TEMPLATE)
    return str(
        template.render(
            title=title,
            style=STYLE,
            conditions=conditions(cells, data=data, threat=threat),
            terms=_TERMS,
            interval=interval_of(cells),
            measures=cells[0].rows,
            rows=[_row(cell) for cell in cells],
            paired=paired,
            gains=[_gain(each) for each in gains],
            settings=yaml.safe_dump(dict(settings), sort_keys=False),
            **{name: embedded(path.read_bytes()) for name, path in plots.items()},
        )
    )


def _row(cell: Cell) -> list[str]:
    lr = "" if cell.lr is None else f"{cell.lr:g}"
    if cell.diverged:
        lr += f" ({', '.join(f'{each:g}' for each in cell.diverged)} diverged)"
    validation = "" if cell.validation is None else f"{100 * cell.validation:.1f}"
    shown = [cell.shown(measure) for measure in cell.rows]
    return [cell.row, f"{100 * cell.density:g} %", lr, validation, *shown]


def _gain(each: Difference) -> list[str]:
    return [
        f"{each.first} minus {each.second}",
        f"{100 * each.density:g} %",
        each.measure,
        f"{100 * each.mean:+.1f}",
        f"[{100 * each.low:+.1f}, {100 * each.high:+.1f}]",
        ", ".join(f"{p:.2g}" for p in each.p_values),
    ]
