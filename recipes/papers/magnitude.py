"""Sehwag et al. 2019: robust training, magnitude pruning, robust fine-tuning.

"Towards Compact and Robust Deep Neural Networks", arXiv 1906.06110. The paper pre-trains and
fine-tunes with the same robust loss; the pruning between them looks only at the magnitudes of the
weights. This recipe is the baseline of the other recipes. It has no prune phase; its fine-tuning
gets the epochs of prune and finetune together, so that all recipes train for the same number of
epochs. With a schedule, the density falls during the first part of the fine-tuning (gradual
pruning, Zhu and Gupta 2017), which is the strongest form of the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from robust_plugin.budget.schedules import AtOnce, Cubic, DensitySchedule, Geometric
from robust_plugin.pruning.presets import MagnitudePruner
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.training.loop import pretrained, train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import covered, finished


@dataclass(frozen=True)
class MagnitudeConfig(RecipeConfig):
    """Robust training, magnitude pruning, robust fine-tuning.

    Attributes:
        rounds: number of times the network is pruned and then fine-tuned; 1 is one-shot pruning.
            With more rounds (iterative pruning), every round keeps the same share of the weights
            that the rounds before it have left: at density 0.01, each of 2 rounds keeps 10 % of
            them. Each round has a learning rate cosine of its own.
        schedule: how the density falls: at_once (before fine-tuning, or in rounds), or smoothly
            while the weights train: geometric (every cut keeps the same share of what is left) or
            cubic (fast at first).
        shrink: share of the epochs after pre-training, above 0 and at most 1, during which the
            density falls; only with the schedules geometric and cubic.
    """

    rounds: int = 1
    schedule: Literal["at_once", "geometric", "cubic"] = "at_once"
    shrink: float = 0.5


def rounds_of(config: MagnitudeConfig) -> dict[str, StageConfig]:
    """Return the settings of the fine-tuning stages by name, one stage per round, in order.

    The last round, at the final density, gets at least half of the epochs. The rounds before it
    share the other half equally.

    Raises:
        ValueError: if there are not enough epochs for the rounds.
    """
    epochs = config.prune.epochs + config.finetune.epochs
    if not 1 <= config.rounds <= epochs // 2 + 1:
        raise ValueError(
            f"rounds is {config.rounds}; legal: 1 to {epochs // 2 + 1}, each on the way takes an "
            f"epoch from the first half of {epochs} (prune and finetune together)."
        )
    early = epochs // 2 // (config.rounds - 1) if config.rounds > 1 else 0
    on_the_way = replace(config.finetune, epochs=early, select="last")
    last = replace(config.finetune, epochs=epochs - early * (config.rounds - 1))
    return {
        **{f"finetune-{round_}": on_the_way for round_ in range(1, config.rounds)},
        "finetune": last,
    }


def schedule_until(name: str, share: float) -> DensitySchedule:
    """Return the schedule of a name that reaches its target after a share of its phase.

    Args:
        name: at_once, geometric or cubic.
        share: share of the phase, in (0, 1].
    """
    if name == "at_once":
        return AtOnce()
    return Geometric(until=share) if name == "geometric" else Cubic(until=share)


def magnitude(run: Run, config: MagnitudeConfig) -> nn.Module:
    """Run the recipe: train, prune by magnitude (at once, in rounds or gradually), fine-tune.

    Args:
        run: the run; it has the data, and the folder to which each training stage is saved.
        config: settings of the recipe.

    Returns:
        nn.Module: the finished network without masks, whose pruned weights are zero.
    """
    stages = rounds_of(config)
    model = pretrained(run)  # 1. theta = argmin E[L_robust(theta)]
    first = config.density ** (1 / config.rounds)
    pruner = MagnitudePruner(
        model,
        first,
        rates=config.rates,
        budget=config.budget,
        **covered(run, model),
        round_to=config.round_to,
        schedule=schedule_until(config.schedule, config.shrink),
        example_inputs=run.example,
    )
    if config.schedule != "at_once":
        # 2. and 3. at once: m = P(theta, k) with k falling from 1, theta = argmin E[L_robust]
        train(run, "finetune", model, stages["finetune"], pruner=pruner, phase="shrink")
        return finished(run, pruner)
    for round_, (name, stage) in enumerate(stages.items(), 1):
        train(run, name, model, stage, pruner=pruner)  # 3. theta = argmin E[L_robust(theta m)]
        if round_ < config.rounds:
            density = config.density ** ((round_ + 1) / config.rounds)
            pruner.set_density(density)  # 2. m = P(theta, k)
    return finished(run, pruner)
