"""HARP, Zhao and Wressnegger, ICLR 2023: scores and layer densities learned on the robust loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from robust_plugin.pruning.phases import Learnable
from robust_plugin.pruning.presets import HarpPruner
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
class HarpConfig(RecipeConfig):
    """Robust training, scores and layer densities learned under one budget, robust fine-tuning.

    Attributes:
        scores: importance scores that the phase prune begins with: scaled_magnitude (from the
            magnitudes of the weights), snip (weight times gradient, SNIP), or random scores of the
            named initialiser.
        learn: parameters that the phase prune learns: scores (the importance scores of the weights,
            at fixed layer densities, as in HYDRA), rates (the density of each layer, at fixed
            scores), or both.
        control: method by which the learned layer densities meet the budget: held projects them
            onto the budget after every step; hinge adds the penalty of the HARP paper to the loss
            while they exceed the budget.
        gamma_step: growth per epoch of the weight of the penalty for exceeding the budget, only
            with --control hinge; the paper uses 0.01, and 0.1 for ImageNet.
        pattern: n:4 or n:8 keeps n of every 4 or 8 weights, where n is learned for each layer; none
            prunes without a pattern.
    """

    scores: InitialScores = "scaled_magnitude"
    learn: Literal["both", "scores", "rates"] = "both"
    control: Literal["held", "hinge"] = "held"
    gamma_step: float = 0.01
    pattern: Literal["none", "n:4", "n:8"] = "none"


def harp(run: Run, config: HarpConfig) -> nn.Module:
    """Run the HARP recipe: train, learn scores and layer densities and prune, then fine-tune.

    Args:
        run: the run; it has the data, and the folder to which each training stage is saved.
        config: settings of the recipe.

    Returns:
        nn.Module: the finished network without masks, whose pruned weights are zero.
    """
    model = pretrained(run)  # 1. theta = argmin E[L_robust(theta)]
    both: tuple[Learnable, ...] = ("scores", "rates")
    learn = both if config.learn == "both" else (config.learn,)
    pruner = HarpPruner(
        model,
        config.density,
        learn=learn,
        scores=initial_scores_of(run, model, config.scores),
        rates=config.rates,
        budget=config.budget,
        control=config.control,
        gamma_step=config.gamma_step,
        pattern=None if config.pattern == "none" else config.pattern,
        **covered(run, model),
        round_to=config.round_to,
        example_inputs=run.example,
    )
    # 2. r, s = argmin E[L_robust(theta * m(s, r))] + gamma L_hw(r), theta frozen
    train(run, "prune", model, config.prune, pruner=pruner, phase="prune")
    # 3. theta = argmin E[L_robust(theta * m)], m fixed at exactly the budget
    if config.finetune.epochs:
        train(run, "finetune", model, config.finetune, pruner=pruner)
    return finished(run, pruner)
