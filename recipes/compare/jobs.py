"""A comparison laid out: its settings, and the trainings that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import as_plain, build
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.training.checks import check_settings

# What a comparison gives each of its trainings, over what its base or a row says, and from where.
_REPLACED = {
    "density": "densities",
    "seed": "seeds",
    "finetune.lr": "lrs",
}


# What the rows of a comparison share: the dense network, and how all of them are measured.
_SHARED = {
    **dict.fromkeys(("checkpoint", "pretrain", "pretraining"), "the dense network"),
    **dict.fromkeys(("threat", "evaluation"), "how networks are measured"),
    **dict.fromkeys(
        ("data.name", "data.folder", "data.test", "data.validation", "data.image_size"),
        "the points",
    ),
}


@dataclass(frozen=True)
class Job:
    """One training: a row at a density, a seed and a learning rate."""

    row: str
    recipe: str
    config: RecipeConfig
    folder: Path

    @property
    def lr(self) -> float:
        """The fine-tuning learning rate."""
        return self.config.finetune.lr


Jobs = dict[tuple[str, float, int, float], Job]


def jobs_of(config: CompareConfig, folder: Path) -> tuple[dict[int, Job], Jobs]:
    """Return all trainings: the dense networks by seed; the others by row, density, seed and rate.

    Raises:
        ValueError: for a row with an unknown recipe or setting, or an empty or doubled axis.
    """
    _check(config)
    dense = {seed: _dense(config, seed, folder) for seed in config.seeds}
    jobs = {
        (row, density, seed, lr): _job(config, row, density, seed, lr, folder)
        for density in config.densities
        for row in config.rows
        for seed in config.seeds
        for lr in config.lrs
    }
    return dense, jobs


def settings_of(config: CompareConfig) -> dict[str, Any]:
    """Return the settings as plain values, without those of the base that the axes replace."""
    plain: dict[str, Any] = as_plain(config)
    for name in _REPLACED:
        *sections, key = ["base", *name.split(".")]
        held = plain
        for section in sections:
            held = held[section]
        del held[key]
    return plain


def _check(config: CompareConfig) -> None:
    for name in ("rows", "densities", "seeds", "lrs"):
        given = list(getattr(config, name))
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name} is {given}; legal: at least one, and none twice.")
    _check_base(config.base)
    if config.jobs < 1:
        raise ValueError(f"jobs is {config.jobs}; legal: at least 1.")
    taken = {"dense": "the dense network"}
    for row in config.rows:
        name = _folder_name(row)
        if name in taken or Path(name).name != name:
            raise ValueError(
                f"row {row!r} needs a folder {name!r} of its own"
                + (f", which is that of {taken[name]!r}." if name in taken else ".")
            )
        taken[name] = row


def _check_base(base: RecipeConfig) -> None:
    """Raise a ValueError for settings of a comparison's base that each training replaces."""
    for name, axis in _REPLACED.items():
        if (value := _at(base, name)) != _at(RecipeConfig(), name):
            raise ValueError(
                f"base.{name} is {value}, and a comparison takes {axis} in its place; leave it "
                f"out, and give --{axis}."
            )


def _check_row(row: str, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for settings of a comparison's row that it cannot have for itself."""
    for name in [*_REPLACED, *_SHARED]:
        section, _, key = name.partition(".")
        held = settings.get(section, {})
        if section not in settings or (key and not (isinstance(held, Mapping) and key in held)):
            continue
        if name in _REPLACED:
            axis = _REPLACED[name]
            raise ValueError(
                f"row {row!r} sets {name}, and a comparison takes {axis} in its place; leave it "
                f"out, and give --{axis}."
            )
        raise ValueError(
            f"row {row!r} sets {name}, but all rows share {_SHARED[name]}; set it in base, or make "
            "another comparison."
        )


def _at(config: RecipeConfig, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _check_pattern(row: str, config: RecipeConfig) -> None:
    """Raise a ValueError for a row of HYDRA whose pattern keeps another share than its density."""
    pattern = getattr(config, "pattern", "none")
    n, _, m = pattern.partition(":")
    if n.isdigit() and config.density != int(n) / int(m):
        raise ValueError(
            f"row {row!r} has the pattern {pattern}, which keeps {int(n) / int(m):g}, and would "
            f"stand in the table as {config.density:g}; give --densities {int(n) / int(m):g}."
        )


def _folder_name(row: str) -> str:
    return row.replace(" ", "-")


def _dense(config: CompareConfig, seed: int, folder: Path) -> Job:
    here = folder / f"seed{seed}" / "dense"
    return Job("dense", "dense", replace(config.base, seed=seed), here)


def _job(
    config: CompareConfig, row: str, density: float, seed: int, lr: float, folder: Path
) -> Job:
    settings = dict(config.rows[row])
    recipe = settings.pop("recipe", None)
    legal = [name for name in RECIPES if name != "dense"]  # there is one anyway
    if recipe not in legal:
        raise ValueError(f"row {row!r} has recipe {recipe!r}; legal: {', '.join(legal)}.")
    _check_row(row, settings)
    merged = _merged(as_plain(config.base), settings)
    merged = _merged(merged, {"density": density, "seed": seed, "finetune": {"lr": lr}})
    merged["checkpoint"] = str(folder / f"seed{seed}" / "dense" / "pretrained.safetensors")
    kind, _ = RECIPES[recipe]
    built = build(kind, merged, where=f"row {row!r}")
    check_settings(built)
    _check_pattern(row, built)
    here = folder / f"seed{seed}" / _folder_name(row) / f"{density:g}" / f"lr{lr:g}"
    return Job(row, recipe, built, here)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _merged(both[key], value) if nested else value
    return both
