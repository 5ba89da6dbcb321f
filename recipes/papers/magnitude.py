"""Sehwag et al. 2019: robust training, least weight magnitude, robust fine-tuning.

"Towards Compact and Robust Deep Neural Networks", arXiv 1906.06110. Its point is that
pre-training and fine-tuning share one robust objective, and that the pruning between them may be
agnostic of it. The baseline of every other recipe: it trains as many epochs as they do, prune and
finetune together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from robust_plugin.pruning.presets import MagnitudePruner
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.training.loop import pretrained, train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.structure import covered, finished


@dataclass(frozen=True)
class MagnitudeConfig(RecipeConfig):
    """Robust training, magnitude pruning, robust fine-tuning.

    Attributes:
        rounds: 1 prunes at once; more alternate pruning and fine-tuning (iterative), each
            round keeping the same share of the one before.
    """

    rounds: int = 1


def rounds_of(config: MagnitudeConfig) -> dict[str, StageConfig]:
    """Return the fine-tuning stages by name: a round's, and at the end the last density's.

    The last density gets half of the epochs, the ones on the way share the other half.

    Raises:
        ValueError: for more rounds than epochs allow.
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


def magnitude(run: Run, config: MagnitudeConfig) -> nn.Module:
    """Return the pruned network, finalized."""
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
        example_inputs=run.example,
    )
    for round_, (name, stage) in enumerate(stages.items(), 1):
        train(run, name, model, stage, pruner=pruner)  # 3. theta = argmin E[L_robust(theta m)]
        if round_ < config.rounds:
            density = config.density ** ((round_ + 1) / config.rounds)
            pruner.set_density(density)  # 2. m = P(theta, k)
    return finished(run, pruner)
