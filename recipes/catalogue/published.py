"""Published figures, and what a run's own are beside them: two lines each, never one row.

The figures stand in published.yaml, with their sources and conditions.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.stats import wilson_interval

_FILE = Path(__file__).parent / "published.yaml"
_BY_ATTACK = ("adversarial", "trades", "mart")
_TITLES = {"cifar10": "CIFAR-10", "svhn": "SVHN"}
# Keys of a row that are no method.
_OF_ROW = ("data", "model", "dense")
# Settings that make another system of a preset's, with their values in the papers' tables.
_PLAIN = {"rates": "uniform", "rounds": 1, "learn": "both", "pretraining": "robust"}


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        method: magnitude, hydra, harp, or a method that is not here.
        data: the data set.
        model: the network; None is a mean over several.
        objective: what was trained on; empty where our sources do not say.
        structure: weights or channels.
        density: the share kept.
        metric: benign, era, autoattack, smoothed, or a share of the dense network's.
        value: in %.
        dense: of the dense network, in %, where it is published.
        source: where it stands.
        of: what it is of.
        conditions: as published.yaml has them.
    """

    method: str
    data: str
    model: str | None
    objective: tuple[str, ...]
    structure: str
    density: float
    metric: str
    value: float
    dense: float | None
    source: str
    of: str
    conditions: Mapping[str, Any]


@lru_cache
def figures() -> tuple[Figure, ...]:
    """Return all published figures, as published.yaml has them."""
    return tuple(
        figure for table in yaml.safe_load(_FILE.read_text()) for figure in _of_table(table)
    )


def _of_table(table: Mapping[str, Any]) -> Iterator[Figure]:
    metrics = table["metrics"]
    for row in table["rows"]:
        dense = row.get("dense", [None] * len(metrics))
        for method, values in row.items():
            if method in _OF_ROW:
                continue
            for density, at_density in zip(table["densities"], values, strict=True):
                each = at_density if isinstance(at_density, list) else [at_density]
                for metric, value, of_dense in zip(metrics, each, dense, strict=True):
                    yield Figure(
                        method=method,
                        data=row["data"],
                        model=row.get("model"),
                        objective=tuple(table.get("objective", ())),
                        structure=table.get("structure", "weights"),
                        density=density,
                        metric=metric,
                        value=value,
                        dense=of_dense,
                        source=table["source"],
                        of=table["of"],
                        conditions=table.get("conditions", {}),
                    )


def published_for(command: str, config: RecipeConfig, *, data: str) -> tuple[Figure, ...]:
    """Return the figures of a system at all densities.

    Args:
        command: magnitude, hydra or harp.
        config: names the network, the objective and the structure.
        data: the data set.
    """
    return tuple(
        each
        for each in figures()
        if each.method == command
        and each.data == data
        and each.model in (None, config.model)
        and each.structure == config.structure
        and config.objective.name in (each.objective or _BY_ATTACK)
    )


def published_densities(command: str, config: RecipeConfig) -> tuple[float, ...]:
    """Return at which densities there are figures of exactly this system, the largest first."""
    if _variations(config):
        return ()
    found = published_for(command, config, data=config.data.name)
    return tuple(sorted({each.density for each in found}, reverse=True))


def beside_published(command: str, preset: RecipeConfig, config: RecipeConfig, folder: Path) -> str:
    """Return what was published of a finished run's system at its density, and its own figures.

    Args:
        command: magnitude, hydra or harp.
        preset: what the run began with: says which data set a folder of images stands for, and
            which system it is where nothing was published of the settings themselves.
        config: the run's settings.
        folder: the run's.

    Returns:
        str: a paragraph a figure, each figure named as published or ours, with its source and what
        differs; empty where nothing is published.
    """
    if getattr(config, "pattern", "none") != "none":
        return ""  # there is no density
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
        text = (
            f"{figure.metric}: published {_value(figure)}; ours {own}; what differs: "
            f"{differ or 'nothing known'}; not known of it: {', '.join(_unsaid(figure))}."
        )
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _value(figure: Figure) -> str:
    dense = "" if figure.dense is None else f"; its dense network {figure.dense:g}"
    return f"{figure.value:g} ({figure.source}: {figure.of}{dense})"


def _own(figure: Figure, report: Report) -> str:
    row = _row(figure.metric, report)
    if row is None:
        return "not measured by this run"
    low, high = report.interval(row)
    n = len(report.flags.get(row, report.certified or ()))
    return f"{100 * report.accuracy(row):.1f} [{100 * low:.1f}, {100 * high:.1f}] ({row}, n={n})"


def _row(metric: str, report: Report) -> str | None:
    """Return the report's row that measures a metric, if there is one."""
    if metric == "vra":
        return "certified" if report.certified is not None else None
    names = {"benign": ("clean",), "era": ("PGD",), "autoattack": ("AutoAttack",)}
    starts = names.get(metric, ())
    return next((row for row in report.rows if row.startswith(starts)), None) if starts else None


def _smoothed(config: RecipeConfig, smoothing: Mapping[str, Any] | None) -> str:
    threat = config.threat.build()
    if smoothing is None or threat.norm != "L2":
        return "not measured by this run"
    each = zip(smoothing["predictions"], smoothing["labels"], smoothing["radii"], strict=True)
    n = len(smoothing["labels"])
    right = sum(said == true and radius >= threat.eps for said, true, radius in each)
    low, high = (100 * end for end in wilson_interval(right, n))
    return f"{100 * right / n:.1f} [{low:.1f}, {high:.1f}] (radius {threat.eps:.3g}, n={n})"


def _differences(figure: Figure, config: RecipeConfig, data: str, report: Report) -> Iterator[str]:
    """Yield what is known to differ, ours first."""
    of = figure.conditions
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
    yield from _variations(config)
    threat = config.threat.build()
    if figure.metric != "smoothed" and threat.norm != "Linf":  # all others are of Linf
        eps = f" eps={of['eps']:.3g}" if "eps" in of else ""
        yield f"{threat} for Linf{eps}"
    elif "eps" in of and not math.isclose(threat.eps, of["eps"]):
        yield f"eps {threat.eps:.3g} for {of['eps']:.3g}"
    if config.checkpoint is not None:
        yield "a dense network from elsewhere"
    theirs = of.get("epochs", {}).get(figure.method)
    if theirs is not None and (epochs := _epochs(figure.method, config)) != theirs:
        yield f"{_sum(epochs)} epochs for {_sum(theirs)}"
    theirs, ours = of.get("extra"), getattr(config.data, "extra", None)
    if theirs and ours is None:
        yield f"no extra data for {theirs:,} images"
    elif ours is not None and not theirs:
        yield "extra data for none" if theirs == 0 else "extra data for none that is known"
    if figure.method == "harp" and getattr(config, "control", "hinge") != "hinge":
        yield "budget held at every step for the paper's hinge"
    row = _row("era", report)
    if figure.metric == "era" and row not in (None, of.get("attack", row)):
        yield f"{row} for {of['attack']}"


def _variations(config: RecipeConfig) -> list[str]:
    """Return the settings that make another system of this one than the tables have."""
    found = {name: getattr(config, name, plain) for name, plain in _PLAIN.items()}
    return [
        f"{name} {found[name]} for {_PLAIN[name]}" for name in found if found[name] != _PLAIN[name]
    ]


def _epochs(method: str, config: RecipeConfig) -> list[int]:
    first, second, third = config.pretrain.epochs, config.prune.epochs, config.finetune.epochs
    return [first, second + third] if method == "magnitude" else [first, second, third]


def _sum(epochs: list[int]) -> str:
    return "+".join(map(str, epochs))


def _unsaid(figure: Figure) -> list[str]:
    """Return what our sources do not say of a figure."""
    needed = {"epochs": "epochs", "extra": "extra data"}
    if figure.metric != "smoothed":  # what it is of says so of the radius
        needed["eps"] = "eps"
    if figure.metric == "era":
        needed["attack"] = "attack"
    found = [] if figure.objective else ["objective"]
    found += [name for key, name in needed.items() if key not in figure.conditions]
    return [*found, "number of test points"]
