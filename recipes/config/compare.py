"""The settings of the command ``compare``, as a frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust_plugin.recipes.config.schema import RecipeConfig


@dataclass(frozen=True)
class CompareConfig:
    """Compare methods (the rows of a table) at several densities and seeds on equal terms.

    Attributes:
        base: the settings that all methods share. base.checkpoint, if given, is the dense network
            for all seeds. base.density, base.seed and base.finetune.lr are refused: give densities,
            seeds and lrs instead.
        rows: the methods (rows of the table) by name, each with the key recipe (gradual, magnitude,
            hydra or harp) and the settings in which it differs from base. They are set in a YAML
            file and have no options on the command line.
        densities: densities to prune to (shares of the prunable weights that are kept), separated
            by spaces; each method is trained at each of them.
        seeds: seeds, separated by spaces; for each seed a dense network is trained, and every
            method prunes this network.
        lrs: fine-tuning learning rates to try, separated by spaces. Each method uses, at each
            density, the one with the best robust accuracy on the validation points, averaged over
            the seeds.
        tuning_seeds: number of seeds, the first ones, on which the learning rate is chosen; the
            networks of the other seeds are trained at the chosen one alone. 0 takes all seeds.
        jobs: number of trainings that run at the same time, each in a process of its own with
            base.threads CPU threads.
    """

    base: RecipeConfig = field(default_factory=RecipeConfig)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    densities: tuple[float, ...] = (0.05, 0.01)
    seeds: tuple[int, ...] = (0,)
    lrs: tuple[float, ...] = (0.1,)
    tuning_seeds: int = 0
    jobs: int = 1
