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
        base: the settings that all rows share. A checkpoint here is the dense network of all seeds.
            base.density, base.seed and base.finetune.lr are not allowed; use densities, seeds and
            lrs.
        rows: rows of the table by name, each with the key recipe (magnitude, hydra or harp) and the
            settings in which the row differs from base. Rows are easier to write in a YAML file
            (see --config).
        densities: shares of the prunable weights that are kept, separated by spaces; the table has
            one part per density.
        seeds: seeds, separated by spaces; for each, a dense network is trained and every row prunes
            it.
        lrs: fine-tuning learning rates to try, separated by spaces; each row uses the one with the
            best robust accuracy on the validation points, averaged over the seeds.
        jobs: number of trainings that run at the same time, each in a process of its own with
            base.threads CPU threads.
    """

    base: RecipeConfig = field(default_factory=RecipeConfig)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    densities: tuple[float, ...] = (0.05, 0.01)
    seeds: tuple[int, ...] = (0,)
    lrs: tuple[float, ...] = (0.1,)
    jobs: int = 1
