"""The stages of a recipe and their length, known before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from robust_plugin.recipes.batches import steps_of
from robust_plugin.recipes.config import RecipeConfig, StageConfig
from robust_plugin.recipes.run import Run


def stages_of(recipe: str, config: RecipeConfig) -> dict[str, StageConfig]:
    """Return the stages that a recipe trains, by name, in their order.

    Args:
        recipe: magnitude, hydra, harp or dense.
        config: its settings.
    """
    stages = {} if config.checkpoint is not None else {"pretrain": config.pretrain}
    if recipe == "magnitude":
        from robust_plugin.recipes.magnitude import MagnitudeConfig, rounds_of

        return stages | rounds_of(cast(MagnitudeConfig, config))
    if recipe == "dense":
        return stages
    stages["prune"] = config.prune
    return {**stages, "finetune": config.finetune} if config.finetune.epochs else stages


@dataclass(frozen=True)
class Length:
    """How long a stage trains.

    Attributes:
        epochs: passes over the training points; in free training each shows a batch several times.
        batches: in an epoch.
        passes: how often each of them is shown.
    """

    epochs: int
    batches: int
    passes: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.batches * self.passes

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.steps_per_epoch


def length_of(run: Run, stage: StageConfig) -> Length:
    """Return how long a stage of a run trains."""
    passes = run.objective.replays if run.objective.name == "free" else 1
    batches = steps_of(run.data.train, batch_size=run.config.data.batch_size)
    return Length(max(1, stage.epochs // passes), batches, passes)
