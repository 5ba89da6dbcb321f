"""HYDRA, Sehwag et al., NeurIPS 2020: importance scores learned by SGD on the robust loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from robust_plugin.pruning.presets import HydraPruner
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.training.loop import pretrained, train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import (
    InitialScores,
    covered,
    finished,
    initial_scores_of,
)


@dataclass(frozen=True)
class HydraConfig(RecipeConfig):
    """Robust training, importance scores learned at given layer densities, robust fine-tuning.

    Attributes:
        scores: importance scores that the phase prune begins with: scaled_magnitude (from the
            magnitudes of the weights), snip (weight times gradient, SNIP), or random scores of the
            named initialiser.
        pattern: n:m pattern such as 2:4: n of every m weights are kept, and density has no effect;
            none prunes without a pattern.
    """

    scores: InitialScores = "scaled_magnitude"
    pattern: Literal["none", "1:4", "2:4", "4:8"] = "none"


def hydra(run: Run, config: HydraConfig) -> nn.Module:
    """Run the HYDRA recipe: train, learn scores and prune, then fine-tune.

    Args:
        run: the run; it has the data, and the folder to which each training stage is saved.
        config: settings of the recipe.

    Returns:
        nn.Module: the finished network without masks, whose pruned weights are zero.
    """
    model = pretrained(run)  # 1. theta = argmin E[L_robust(theta)]
    pattern = None if config.pattern == "none" else config.pattern
    pruner = HydraPruner(
        model,
        config.density if pattern is None else None,
        scores=initial_scores_of(run, model, config.scores),
        rates=config.rates,
        budget=config.budget,
        pattern=pattern,
        **covered(run, model),
        round_to=config.round_to,
        example_inputs=run.example,
    )
    # 2. s = argmin E[L_robust(theta * m(s))], theta frozen
    train(run, "prune", model, config.prune, pruner=pruner, phase="prune")
    # 3. theta = argmin E[L_robust(theta * m)], m fixed
    if config.finetune.epochs:
        train(run, "finetune", model, config.finetune, pruner=pruner)
    return finished(run, pruner)
