"""The HTML page of an evaluation: one file with all tables, curves and images inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from robust_plugin.evaluation.obfuscation_verdict import Obfuscation
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.evaluate.network_facts import NetworkFacts
from robust_plugin.recipes.evaluate.plots import class_plot, curve_plot
from robust_plugin.recipes.pages.accuracy_rows import (
    ACCURACY_HEAD,
    accuracy_rows,
    points_of,
    readings,
    rows_of,
    title_of,
)
from robust_plugin.recipes.pages.colors import PLAIN
from robust_plugin.recipes.pages.confusion import confusion_of
from robust_plugin.recipes.pages.examples import shown_examples
from robust_plugin.recipes.pages.html import load_template


def page(
    report: Report,
    *,
    title: str,
    about: str,
    network: NetworkFacts | None = None,
    checks: Obfuscation | None = None,
    radii: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> str:
    """Return the HTML page of an evaluation.

    Args:
        report: results of the evaluation.
        title: title and heading of the page.
        about: one sentence on the data and the conditions.
        network: size, predictions and examples of the network; None leaves them out.
        checks: checks for obfuscated gradients; None leaves out their section.
        radii: radii in the table of robust accuracy against eps, as text such as ``"8/255"``.
        settings: settings of the evaluation as plain values; None leaves out their section.
        command: command line of the evaluation; empty if it is not known.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
    """
    network, curve = network or NetworkFacts(), report.curve
    names = network.class_names or tuple(map(str, range(max(report.labels) + 1)))
    classes, shown = class_plot(report, names)
    return str(
        load_template("evaluation.html.j2").render(
            title=title,
            about=about,
            cards=_cards(report, network),
            color=PLAIN,
            head=ACCURACY_HEAD,
            rows=accuracy_rows(report),
            reading=readings(report),
            proofs=report.proofs,
            certifier=report.certifier,
            findings=[f for f in report.findings if checks is None or f != checks.verdict],
            checks=checks,
            marks={True: "holds", False: "fails", None: "not run"},
            curve="" if curve is None else curve_plot(report, curve),
            radii="" if curve is None else curve.table(radii),
            classes=classes,
            shown=shown,
            all_classes=len(set(report.labels)),
            examples=shown_examples(network.examples, names),
            confusion=network.attacked and confusion_of(network.attacked, names, PLAIN),
            settings=settings and yaml.safe_dump(dict(settings), sort_keys=False),
            command=command,
            versions=report.versions,
        )
    )


def _cards(report: Report, network: NetworkFacts) -> list[tuple[str, str, str]]:
    """Return the first numbers of the page: label, value, and a note below it."""
    cards = []
    for row in rows_of(report):
        low, high = (100 * end for end in report.interval(row))
        note = f"{low:.1f} to {high:.1f} %, n={points_of(report, row):,}"
        cards.append((title_of(report, row), f"{100 * report.accuracy(row):.1f} %", note))
    if network.parameters is not None:
        left, size = network.parameters
        cards.append(("parameters not zero", f"{100 * left / size:.3g} %", f"{left:,} of {size:,}"))
    return cards
