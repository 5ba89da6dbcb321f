"""Comparison of a run's results with published numbers.

Networks, epochs and data differ between the papers and our run. So each comparison names what
differs, and a published number is never put into one table with our results.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.catalogue.published import Figure, published_for, variations
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.stats import wilson_interval

_TITLES = {"cifar10": "CIFAR-10", "svhn": "SVHN"}


def beside_published(command: str, preset: RecipeConfig, config: RecipeConfig, folder: Path) -> str:
    """Return the numbers published at the density of a finished run, each with the run's own value.

    Args:
        command: name of the method: gradual, magnitude, hydra or harp.
        preset: settings of the preset that the run is based on. If the run's images are in a
            folder, their data set is that of the preset. If no numbers are published for the run's
            settings, those for the preset are taken.
        config: settings of the run.
        folder: folder of the run.

    Returns:
        str: a heading and one paragraph per published number: its value, our value, the source and
        what differs between the two; empty if nothing is published.
    """
    if getattr(config, "pattern", "none") != "none":
        return ""  # a pattern replaces the density, and no figures of patterns are published
    data = preset.data.name if config.data.name == "folder" else config.data.name
    found = published_for(command, config, data=data)
    found = found or published_for(command, preset, data=preset.data.name)
    here = [each for each in found if math.isclose(each.density, config.density)]
    if not here:
        return ""
    content = json.loads((folder / "report.json").read_text())
    report = Report.from_json(json.dumps(content["report"]))
    lines = [f"published figures at {100 * config.density:g} % kept, of other runs than this one:"]
    for figure in here:
        smoothed = figure.metric == "smoothed"
        own = _smoothed(config, content["smoothing"]) if smoothed else _own(figure, report)
        differ = ", ".join(_differences(figure, config, content["data"], report))
        of = "" if figure.method == command else f" for {figure.method}"
        text = (
            f"{figure.metric}: published{of} {_value(figure)}; ours {own}; what differs: "
            f"{differ or 'nothing known'}; not known of it: {', '.join(_unsaid(figure))}."
        )
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _value(figure: Figure) -> str:
    """Return a published number in % as text, with its source and the dense network's value."""
    dense = "" if figure.dense is None else f"; its dense network {figure.dense:g}"
    return f"{figure.value:g} ({figure.source}: {figure.description}{dense})"


def _own(figure: Figure, report: Report) -> str:
    """Return, as text, the run's own value for the metric of a published number.

    Args:
        figure: the published number.
        report: evaluation of the run on the test points.

    Returns:
        str: accuracy in % with its 95 % interval, the name of the attack (or "clean" or
        "certified") and the number of points; or "not measured by this run".
    """
    row = _row(figure.metric, report)
    if row is None:
        return "not measured by this run"
    low, high = report.interval(row)
    n = len(report.flags.get(row, report.certified or ()))
    return f"{100 * report.accuracy(row):.1f} [{100 * low:.1f}, {100 * high:.1f}] ({row}, n={n})"


def _row(metric: str, report: Report) -> str | None:
    """Return the name under which a report has the accuracy of a metric; None if not measured.

    Args:
        metric: metric of a published number: benign, era, autoattack or vra.
        report: evaluation of a run.

    Returns:
        str: "clean", the name of an attack, or "certified".
    """
    if metric == "vra":
        return "certified" if report.certified is not None else None
    names = {"benign": ("clean",), "era": ("PGD",), "autoattack": ("AutoAttack",)}
    starts = names.get(metric, ())
    return next((row for row in report.rows if row.startswith(starts)), None) if starts else None


def _smoothed(config: RecipeConfig, smoothing: Mapping[str, Any] | None) -> str:
    """Return as text the accuracy in % that randomized smoothing certifies at the radius eps.

    Args:
        config: settings of the run.
        smoothing: predictions, labels and radii of the test points, from report.json; None if the
            run was evaluated without smoothing.
    """
    threat = config.threat.build()
    if smoothing is None or threat.norm != "L2":
        return "not measured by this run"
    each = zip(smoothing["predictions"], smoothing["labels"], smoothing["radii"], strict=True)
    n = len(smoothing["labels"])
    right = sum(answer == y and radius >= threat.eps for answer, y, radius in each)
    low, high = (100 * end for end in wilson_interval(right, n))
    return f"{100 * right / n:.1f} [{low:.1f}, {high:.1f}] (radius {threat.eps:.3g}, n={n})"


def _differences(figure: Figure, config: RecipeConfig, data: str, report: Report) -> Iterator[str]:
    """Yield each known difference between a run and a published number, as "ours for theirs".

    Args:
        figure: the published number.
        config: settings of the run.
        data: name of the run's data set.
        report: evaluation of the run.
    """
    conditions = figure.conditions
    if config.data.name != figure.data:
        yield f"images of {data} for {_TITLES[figure.data]}"
    if figure.model is None:
        yield f"one network, {config.model}"
    elif config.model != figure.model:
        yield f"{config.model} for {figure.model}"
    if figure.objective and config.objective.name not in figure.objective:
        yield f"objective {config.objective.name} for {' or '.join(figure.objective)}"
    if config.structure != figure.structure:
        yield f"{config.structure} for {figure.structure}"
    yield from variations(config)
    threat = config.threat.build()
    if figure.metric != "smoothed" and threat.norm != "Linf":  # all other figures are for Linf
        eps = f" eps={conditions['eps']:.3g}" if "eps" in conditions else ""
        yield f"{threat} for Linf{eps}"
    elif "eps" in conditions and not math.isclose(threat.eps, conditions["eps"]):
        yield f"eps {threat.eps:.3g} for {conditions['eps']:.3g}"
    if config.checkpoint is not None:
        yield "a dense network from elsewhere"
    theirs = conditions.get("epochs", {}).get(figure.method)
    if theirs is not None and (epochs := _epochs(figure.method, config)) != theirs:
        yield f"{_sum(epochs)} epochs for {_sum(theirs)}"
    theirs, ours = conditions.get("extra"), getattr(config.data, "extra", None)
    if theirs and ours is None:
        yield f"no extra data for {theirs:,} images"
    elif ours is not None and not theirs:
        yield "extra data for none" if theirs == 0 else "extra data for none that is known"
    if figure.method == "harp" and getattr(config, "control", "hinge") != "hinge":
        yield "budget held at every step for the paper's hinge"
    row = _row("era", report)
    if figure.metric == "era" and row not in (None, conditions.get("attack", row)):
        yield f"{row} for {conditions['attack']}"


def _epochs(method: str, config: RecipeConfig) -> list[int]:
    """Return the numbers of epochs of a run's phases, in their order.

    Magnitude has no prune phase and fine-tunes for the epochs of prune and finetune together.
    """
    first, second, third = config.pretrain.epochs, config.prune.epochs, config.finetune.epochs
    return [first, second + third] if method == "magnitude" else [first, second, third]


def _sum(epochs: list[int]) -> str:
    """Return numbers of epochs as a sum such as "100+20+100"."""
    return "+".join(map(str, epochs))


def _unsaid(figure: Figure) -> list[str]:
    """Return the conditions of a published number that our sources do not state."""
    needed = {"epochs": "epochs", "extra": "extra data"}
    if figure.metric != "smoothed":  # its description says that the radius is unknown
        needed["eps"] = "eps"
    if figure.metric == "era":
        needed["attack"] = "attack"
    found = [] if figure.objective else ["objective"]
    found += [name for key, name in needed.items() if key not in figure.conditions]
    return [*found, "number of test points"]
