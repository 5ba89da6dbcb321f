"""HARP, Zhao and Wressnegger, ICLR 2023: scores and layer-wise rates learned on the robust loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from robust_plugin.pruning.phases import Learnable
from robust_plugin.pruning.presets import HarpPruner
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.training.loop import pretrained, train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.structure import (
    InitialScores,
    covered,
    finished,
    initial_scores_of,
)


@dataclass(frozen=True)
class HarpConfig(RecipeConfig):
    """Robust training, learned scores and rates under one budget, robust fine-tuning.

    Attributes:
        scores: the initial scores.
        learn: both; scores alone at the given rates, as hydra does; or rates alone at magnitude
            scores.
        control: how the rates meet the budget: held at every step, or by the paper's hinge.
        gamma_step: how fast the hinge's weight grows: .01, .1 for ImageNet.
        pattern: n of every 4 or 8, n learned by layer; none for unstructured masks.
    """

    scores: InitialScores = "scaled_magnitude"
    learn: Literal["both", "scores", "rates"] = "both"
    control: Literal["held", "hinge"] = "held"
    gamma_step: float = 0.01
    pattern: Literal["none", "n:4", "n:8"] = "none"


def harp(run: Run, config: HarpConfig) -> nn.Module:
    """Return the pruned network, finalized."""
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
