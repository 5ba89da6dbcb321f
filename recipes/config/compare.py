"""A comparison laid out: its settings, and the trainings that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust_plugin.recipes.config.schema import RecipeConfig


@dataclass(frozen=True)
class CompareConfig:
    """Rows by densities by seeds.

    Attributes:
        base: the settings all rows share; a checkpoint there is the dense network of all seeds.
            Others than the default density, seed and finetune.lr are refused: densities, seeds and
            lrs are in their place.
        rows: by name, the recipe (magnitude, hydra, harp) and the settings that differ.
        densities: shares kept.
        seeds: each with a dense network of its own.
        lrs: fine-tuning learning rates to choose from, by mean robust accuracy on validation.
        jobs: processes side by side; each computes on ``base.threads`` threads.
    """

    base: RecipeConfig = field(default_factory=RecipeConfig)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    densities: tuple[float, ...] = (0.05, 0.01)
    seeds: tuple[int, ...] = (0,)
    lrs: tuple[float, ...] = (0.1,)
    jobs: int = 1
