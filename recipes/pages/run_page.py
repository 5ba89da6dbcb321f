"""The page of a run: one HTML file with all tables and pictures inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from robust_plugin.recipes.pages.accuracy_rows import (
    ACCURACY_HEAD,
    Change,
    accuracy_rows,
    meaning,
    points_of,
    readings,
    rows_of,
    shown,
    title_of,
)
from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.confusion import confusion_of
from robust_plugin.recipes.pages.examples import shown_examples
from robust_plugin.recipes.pages.html import load_template
from robust_plugin.recipes.pages.mask_pictures import mask_picture
from robust_plugin.recipes.pages.run_facts import Layer, Network, RunFacts
from robust_plugin.recipes.pages.run_plots import kept_plot, size_plot, training_plot
from robust_plugin.recipes.pages.security_curve import curves_of_run


def run_page(facts: RunFacts) -> str:
    """Return the HTML page of a run.

    Args:
        facts: what the page shows.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
    """
    color, epochs, attacked = color_of(facts.method), facts.epochs, facts.attacked
    beside = _beside(facts)
    said = dict(beside["reading"]) if beside else {}
    return str(
        load_template("run.html.j2").render(
            title=f"{facts.method}: {facts.model} on {facts.data}",
            about=_about(facts),
            cards=_cards(facts),
            findings=[_sentence(finding) for finding in facts.findings],
            color=color,
            beside=beside,
            head=ACCURACY_HEAD,
            rows=accuracy_rows(facts.report),
            reading=[(name, text) for name, text in readings(facts.report) if name not in said],
            security=curves_of_run(facts.curves) if facts.curves else None,
            training=training_plot(epochs, facts.method, facts.validation) if epochs else "",
            validation=facts.validation,
            stages=list(dict.fromkeys(epoch.stage for epoch in epochs)),
            kept=kept_plot(epochs, facts.method, _unit(facts)) if epochs else "",
            by_layer=any(epoch.densities for epoch in epochs),
            structure=facts.structure,
            layers=[_layer(layer) for layer in facts.layers],
            masks=[(mask.name, *mask_picture(mask.kept, color)) for mask in facts.masks],
            examples=shown_examples(facts.examples, facts.class_names),
            attack=attacked.attack if attacked else "the attack",
            fooled=sum(each.predictions[1] != each.label for each in facts.examples),
            confusion=attacked and confusion_of(attacked, facts.class_names, color),
            smoothing=facts.smoothing,
            settings=yaml.safe_dump(dict(facts.settings), sort_keys=False),
            command=facts.command,
            versions=facts.versions,
        )
    )


def _about(facts: RunFacts) -> str:
    """Return what was trained and how, in two sentences."""
    what = "channels" if facts.budget == "channels" else _unit(facts)
    return (
        f"The method {facts.method} pruned {facts.structure} of {facts.model} to a budget of "
        f"{100 * facts.density:.3g} % of the {what}. The training loss was {facts.objective!r}, "
        f"and the threat model is {facts.threat}: no attack changes an image by more than that."
    )


def _unit(facts: RunFacts) -> str:
    """Return the unit that the budget is counted in.

    A budget of channels is one of multiply-adds too: as many as uniform channels would need.
    """
    return "weights" if facts.budget == "params" else "multiply-adds"


def _cards(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Return the first numbers of the page: label, value, and a note below it."""
    report, cards = facts.report, []
    for row in rows_of(report):
        if row != "worst case":
            low, high = (100 * end for end in report.interval(row))
            note = f"{low:.1f} to {high:.1f}, n={points_of(report, row):,}"
            name = title_of(report, row)
            cards.append((name, f"{100 * report.accuracy(row):.1f} %", note))
    kept, size = (sum(each) for each in zip(*((x.kept, x.size) for x in facts.layers), strict=True))
    cards.append((f"{facts.structure} kept", f"{100 * kept / size:.3g} %", f"{kept:,} of {size:,}"))
    return cards


def _beside(facts: RunFacts) -> Mapping[str, Any] | None:
    """Return the table of the dense network beside the pruned one; None without a dense network."""
    dense, pruned = facts.dense, facts.pruned
    if dense is None or pruned is None:
        return None
    report, changes = dense.report, facts.comparisons
    reach = max(100 * abs(end) for each in changes for end in each.interval)
    rows: list[list[object]] = []
    for each in changes:
        low, high = each.interval
        change = Change(100 * each.difference, 100 * low, 100 * high, reach)
        networks = [shown(network.report, each.row) for network in (dense, pruned)]
        rows.append([title_of(report, each.row), *networks, change])
    reading = [(title_of(report, row), meaning(report, row)) for row in rows_of(report)]
    for name, (before, after), form, text in _costs(dense, pruned, facts.structure, facts.device):
        ratio = f"to {100 * after / before:.3g} %"
        rows.append([name, f"{before:{form}}", f"{after:{form}}", ratio])
        reading.append((name, text))
    return {
        "head": ["", "dense", "pruned", "change"],
        "rows": rows,
        "reading": reading,
        "sentences": [_sentence(str(each)) for each in changes],
        "points": report.n,
        "plot": size_plot(dense, pruned, facts.method, facts.structure),
    }


def _costs(
    dense: Network, pruned: Network, structure: str, device: str
) -> list[tuple[str, tuple[float, float], str, str]]:
    """Return the rows of size and speed: name, both values, their format, and how to read the row.

    Args:
        dense: measurements of the dense network.
        pruned: measurements of the pruned network.
        structure: what was pruned, ``"weights"`` or ``"channels"``.
        device: device and number of threads of the latency, in words.
    """
    numbers = "Numbers that the network has learned."
    work = "Multiplications and additions for one image: the small network really computes less."
    size = "Size of all parameters and statistics in a file."
    time = f"Median time of a forward pass on this machine ({device}), both networks in turns."
    if structure == "weights":
        numbers = "Numbers that the network has learned, without those that are zero."
        work = (
            "Multiplications and additions for one image, without those of zeros. Only a format "
            "that skips zeros saves this work."
        )
        size += " That of the pruned network is compressed: save_compressed leaves out the zeros."
        time += (
            " Zeros in dense layers save no time, so a difference of the two times is chance. "
            "robust_plugin.export has layers that make use of zeros."
        )
    parameters, operations = (
        tuple(float(getattr(each, name)) for each in (dense, pruned))
        for name in ("parameters", "multiply_adds")
    )
    rows: list[tuple[str, tuple[float, float], str, str]] = [
        ("parameters", (parameters[0], parameters[1]), ",.0f", numbers),
        ("multiply-adds", (operations[0], operations[1]), ",.0f", work),
        ("file, kB", (dense.bytes / 1000, pruned.bytes / 1000), ",.1f", size),
    ]
    for batch, before in dense.milliseconds.items():
        name = "ms for 1 image" if batch == 1 else f"ms for {batch} images"
        rows.append((name, (before, pruned.milliseconds[batch]), ",.3g", time))
        time = "The same for more images at once."
    return rows


def _layer(layer: Layer) -> Mapping[str, Any]:
    """Return how much of a layer is kept, as the page shows it."""
    percent = 100 * layer.kept / layer.size
    counts = f"{layer.kept:,} of {layer.size:,}"
    return {"name": layer.name, "percent": percent, "share": f"{percent:.3g} %", "counts": counts}


def _sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning and a full stop at its end."""
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))
