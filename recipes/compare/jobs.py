"""The list of trainings of a comparison, and the checks of its settings."""

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

# Settings that a comparison sets for each of its trainings, with the list of the comparison that
# their values come from. They are illegal in the base and in a row.
_REPLACED = {
    "density": "densities",
    "seed": "seeds",
    "finetune.lr": "lrs",
}


# Settings that all rows of a comparison share, with the reason. They are illegal in a row.
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
    """One training: a method at one density, with one seed and one learning rate.

    Attributes:
        row: name of the method in the comparison.
        recipe: name of its recipe: gradual, magnitude, hydra, harp or dense.
        config: settings of the training.
        folder: run folder of the training.
    """

    row: str
    recipe: str
    config: RecipeConfig
    folder: Path

    @property
    def lr(self) -> float:
        """The fine-tuning learning rate."""
        return self.config.finetune.lr

    @property
    def prunes_first(self) -> bool:
        """Whether the prune phase comes first, so that it does not depend on this learning rate."""
        return next(iter(RECIPES[self.recipe].stages(self.config)), "") == "prune"


# Trainings by row, density, seed and learning rate.
Jobs = dict[tuple[str, float, int, float], Job]


def jobs_of(config: CompareConfig, folder: Path) -> tuple[dict[int, Job], Jobs]:
    """Return all trainings of a comparison, after a check of the settings.

    Args:
        config: settings of the comparison.
        folder: folder of the comparison.

    Returns:
        tuple: the trainings of the dense networks by seed; all other trainings by method, density,
        seed and learning rate.

    Raises:
        ValueError: for a method with an unknown recipe or setting, or a list of rows, densities,
            seeds or learning rates that is empty or has repetitions.
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


def tuned_seeds(config: CompareConfig) -> tuple[int, ...]:
    """Return the seeds on which learning rates are chosen: the first ``tuning_seeds``, or all."""
    return config.seeds[: config.tuning_seeds or None]


def settings_of(config: CompareConfig) -> dict[str, Any]:
    """Return the settings of a comparison as dicts, lists, strings and numbers.

    base.density, base.seed and base.finetune.lr are left out, because every training replaces
    them.
    """
    plain: dict[str, Any] = as_plain(config)
    for name in _REPLACED:
        *sections, key = ["base", *name.split(".")]
        section_settings = plain
        for section in sections:
            section_settings = section_settings[section]
        del section_settings[key]
    return plain


def _check(config: CompareConfig) -> None:
    """Raise a ValueError for illegal settings of a comparison, without those inside its rows."""
    for name in ("rows", "densities", "seeds", "lrs"):
        given = list(getattr(config, name))
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name} is {given}; legal: at least one, and none twice.")
    _check_base(config.base)
    if not 0 <= config.tuning_seeds <= len(config.seeds):
        raise ValueError(
            f"tuning_seeds is {config.tuning_seeds}; legal: 1 to {len(config.seeds)}, the number "
            "of seeds, or 0 for all."
        )
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
    """Raise a ValueError if ``base`` sets the density, the seed or the fine-tuning learning rate.

    A comparison takes these from its lists ``densities``, ``seeds`` and ``lrs``.
    """
    for name, axis in _REPLACED.items():
        if (value := _setting(base, name)) != _setting(RecipeConfig(), name):
            raise ValueError(
                f"base.{name} is {value}, and a comparison takes {axis} in its place; leave it "
                f"out, and give --{axis}."
            )


def _check_row(row: str, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError if a method sets what it must not set.

    It must not set the density, the seed and the fine-tuning learning rate, which come from lists
    of the comparison, nor settings that are the same for all methods, such as the threat model.

    Args:
        row: name of the method.
        settings: settings of the method that differ from ``base``, by section and name.
    """
    for name in [*_REPLACED, *_SHARED]:
        section, _, key = name.partition(".")
        given = settings.get(section, {})
        if section not in settings or (key and not (isinstance(given, Mapping) and key in given)):
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


def _setting(config: RecipeConfig, name: str) -> Any:
    """Return a setting by its name with dots, such as ``"finetune.lr"``."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _check_pattern(row: str, config: RecipeConfig) -> None:
    """Raise a ValueError if the N:M pattern of a HYDRA row keeps a share other than its density."""
    pattern = getattr(config, "pattern", "none")
    n, _, m = pattern.partition(":")
    if n.isdigit() and config.density != int(n) / int(m):
        raise ValueError(
            f"row {row!r} has the pattern {pattern}, which keeps {int(n) / int(m):g}, and would "
            f"stand in the table as {config.density:g}; give --densities {int(n) / int(m):g}."
        )


def _folder_name(row: str) -> str:
    """Return the name of a method's folder: the method's name with hyphens for spaces."""
    return row.replace(" ", "-")


def _dense(config: CompareConfig, seed: int, folder: Path) -> Job:
    """Return the training of the dense network for a seed; ``folder`` is that of the comparison."""
    here = folder / f"seed{seed}" / "dense"
    return Job("dense", "dense", replace(config.base, seed=seed), here)


def _job(
    config: CompareConfig, row: str, density: float, seed: int, lr: float, folder: Path
) -> Job:
    """Return one training of a method, after a check of the method's settings.

    Args:
        config: settings of the comparison.
        row: name of the method.
        density: share of weights kept.
        seed: seed of the training.
        lr: fine-tuning learning rate.
        folder: folder of the comparison.

    Raises:
        ValueError: for an unknown recipe or an illegal setting.
    """
    settings = dict(config.rows[row])
    recipe = settings.pop("recipe", None)
    legal = [name for name in RECIPES if name != "dense"]  # every comparison trains it
    if recipe not in legal:
        raise ValueError(f"row {row!r} has recipe {recipe!r}; legal: {', '.join(legal)}.")
    _check_row(row, settings)
    kind, where = RECIPES[recipe].config, f"row {row!r}"
    shared = build(kind, as_plain(config.base), where=where)
    own = build(kind, settings, where=where, default=shared)
    built = replace(
        own,
        density=density,
        seed=seed,
        finetune=replace(own.finetune, lr=lr),
        checkpoint=folder / f"seed{seed}" / "dense" / "pretrained.safetensors",
    )
    check_settings(built)
    _check_pattern(row, built)
    here = folder / f"seed{seed}" / _folder_name(row) / f"{density:g}" / f"lr{lr:g}"
    return Job(row, recipe, built, here)
