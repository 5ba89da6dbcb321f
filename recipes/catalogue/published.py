"""Published numbers from papers and a benchmark, read from published.yaml.

The file also holds the source of each number and the conditions under which it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robust_plugin.recipes.config.schema import RecipeConfig

_FILE = Path(__file__).parent / "published.yaml"
_BY_ATTACK = ("adversarial", "trades", "mart")
# Methods without published numbers of their own, and the methods whose numbers stand beside them.
_COMBINES = {"gradual": ("magnitude", "hydra", "harp")}
# Keys of a row in published.yaml that are not the name of a method.
_ROW_KEYS = ("data", "model", "dense")
# Values that these settings have in the papers' tables. A run with another value is not comparable
# to the tables without a remark.
_PLAIN = {"rates": "uniform", "rounds": 1, "learn": "both", "pretraining": "robust"}


@dataclass(frozen=True)
class Figure:
    """One published number: the accuracy of one method on one data set at one density.

    Attributes:
        method: name of the method: gradual, magnitude, hydra, harp, or one that is not implemented
            here.
        data: name of the data set.
        model: name of the network; None if the number is a mean over several networks.
        objective: names of the training objectives that the network may have been trained with, as
            this package calls them; empty if our sources do not say.
        structure: what was pruned: weights or channels.
        density: share of the weights or channels that is kept, from 0 to 1.
        metric: benign, era (under PGD), autoattack, vra (certified) or smoothed (certified by
            smoothing); with " of dense", as a share of the dense network's value.
        value: value of the metric in %.
        dense: value of the metric for the dense network in %; None if it is not published.
        source: the paper or benchmark, and its table.
        description: what the number measures, e.g. "robust accuracy".
        conditions: conditions such as eps and epochs, as in published.yaml.
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
    description: str
    conditions: Mapping[str, Any]


@lru_cache
def figures() -> tuple[Figure, ...]:
    """Return all numbers in published.yaml."""
    return tuple(
        figure for table in yaml.safe_load(_FILE.read_text()) for figure in _figures_of_table(table)
    )


def _figures_of_table(table: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield one published number per value of a table in published.yaml."""
    metrics = table["metrics"]
    for row in table["rows"]:
        dense = row.get("dense", [None] * len(metrics))
        for method, values in row.items():
            if method in _ROW_KEYS:
                continue
            for density, at_density in zip(table["densities"], values, strict=True):
                each = at_density if isinstance(at_density, list) else [at_density]
                for metric, value, dense_value in zip(metrics, each, dense, strict=True):
                    yield Figure(
                        method=method,
                        data=row["data"],
                        model=row.get("model"),
                        objective=tuple(table.get("objective", ())),
                        structure=table.get("structure", "weights"),
                        density=density,
                        metric=metric,
                        value=value,
                        dense=dense_value,
                        source=table["source"],
                        description=table["description"],
                        conditions=table.get("conditions", {}),
                    )


def published_for(command: str, config: RecipeConfig, *, data: str) -> tuple[Figure, ...]:
    """Return the published numbers of a method at all densities, for the settings of a run.

    Nobody has published numbers of gradual; it gets those of the methods that it combines.

    Args:
        command: name of the method: gradual, magnitude, hydra or harp.
        config: settings that name the network, the objective and the structure.
        data: name of the data set.
    """
    methods = _COMBINES.get(command, (command,))
    return tuple(
        each
        for each in figures()
        if each.method in methods
        and each.data == data
        and each.model in (None, config.model)
        and each.structure == config.structure
        and config.objective.name in (each.objective or _BY_ATTACK)
    )


def published_densities(command: str, config: RecipeConfig) -> tuple[float, ...]:
    """Return the densities for which papers report numbers for these settings, the largest first.

    Args:
        command: name of the method: gradual, magnitude, hydra or harp.
        config: settings of a run or preset.

    Returns:
        tuple: the densities; empty if the papers' tables use another value of a setting such as
        ``rates`` (the layer densities).
    """
    if variations(config):
        return ()
    found = published_for(command, config, data=config.data.name)
    return tuple(sorted({each.density for each in found}, reverse=True))


def variations(config: RecipeConfig) -> list[str]:
    """Return the settings whose values differ from those in the papers' tables.

    Returns:
        list: one text per setting, such as "rates erk for uniform": the run has erk, the papers
        uniform.
    """
    found = {name: getattr(config, name, plain) for name, plain in _PLAIN.items()}
    return [
        f"{name} {found[name]} for {_PLAIN[name]}" for name in found if found[name] != _PLAIN[name]
    ]
