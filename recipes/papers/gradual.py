"""Gradual pruning whose last cut is learned: ours, from the parts of the papers.

Three observations stand behind it. Density that falls smoothly by magnitude, at rates that are
computed anew while the weights train, is the strongest baseline. A score that is learned on the
robust loss (HYDRA) chooses better than a magnitude. And scores can only be learned while the
weights are frozen, so that learning a long way down costs training of the weights. So the density
falls by magnitude to twice the target, and only the last halving is learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from robust_plugin.pruning.phases import Learnable
from robust_plugin.pruning.presets import GradualPruner
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.papers.magnitude import schedule_until
from robust_plugin.recipes.training.loop import pretrained, train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import (
    InitialScores,
    covered,
    finished,
    initial_scores_of,
)


@dataclass(frozen=True)
class GradualConfig(RecipeConfig):
    """Robust training, density that falls while the weights train, a learned last cut, fine-tuning.

    Attributes:
        rates: method that sets the density of each layer, that is, the share of its weights that is
            kept: uniform (the same in all layers), erk (by the shapes of the layers), lamp (by the
            magnitudes of the weights), or global (by one threshold for the magnitudes in all
            layers). They are computed anew at every cut.
        schedule: how the density falls in the phase shrink: geometric (every cut keeps the same
            share of what is left) or cubic (fast at first).
        shrink: share of the epochs of finetune, above 0 and below 1, that the phase shrink takes,
            rounded to whole epochs. Both phases follow one learning rate cosine.
        last_cut: share of what the phase shrink has left that the phase prune keeps, above 0 and
            below 1; with 0.5 the phase shrink ends at twice the density.
        scores: importance scores that the phase prune begins with: scaled_magnitude (from the
            magnitudes of the weights), snip (weight times gradient, SNIP), or random scores of the
            named initialiser.
        learn: parameters that the phase prune learns: scores (the importance scores of the weights,
            at fixed layer densities, as in HYDRA), rates (the density of each layer, at fixed
            scores), or both (as in HARP).
        control: method by which learned layer densities meet the budget: held projects them onto
            the budget after every step; hinge adds the penalty of the HARP paper to the loss while
            they exceed the budget.
        pattern: n:m pattern such as 2:4: n of every m weights are kept, and density has no effect;
            n:4 or n:8 keeps n of every 4 or 8 weights, where n is learned for each layer; none
            prunes without a pattern.
    """

    rates: Literal["uniform", "erk", "lamp", "global"] = "lamp"
    schedule: Literal["geometric", "cubic"] = "geometric"
    shrink: float = 1 / 3
    last_cut: float = 0.5
    scores: InitialScores = "scaled_magnitude"
    learn: Literal["scores", "rates", "both"] = "scores"
    control: Literal["held", "hinge"] = "held"
    pattern: Literal["none", "1:4", "2:4", "4:8", "n:4", "n:8"] = "none"


def parts_of(config: GradualConfig) -> tuple[StageConfig, StageConfig]:
    """Return the settings of the phases shrink and finetune, which divide the epochs of finetune.

    Raises:
        ValueError: if there are not enough epochs for both.
    """
    epochs = config.finetune.epochs
    first = max(1, round(config.shrink * epochs))
    if not first < epochs:
        raise ValueError(
            f"shrink is {config.shrink:g} and finetune.epochs is {epochs}, of which the phase "
            f"shrink would take {first}; leave at least one epoch to each of the two."
        )
    return (
        replace(config.finetune, epochs=first, select="last"),
        replace(config.finetune, epochs=epochs - first),
    )


def gradual(run: Run, config: GradualConfig) -> nn.Module:
    """Run the recipe: train, let the density fall, learn the last cut, then fine-tune.

    Args:
        run: the run; it has the data, and the folder to which each training stage is saved.
        config: settings of the recipe.

    Returns:
        nn.Module: the finished network without masks, whose pruned weights are zero.
    """
    weights = shrink, finetune = parts_of(config)
    model = pretrained(run)  # 1. theta = argmin E[L_robust(theta)]
    both: tuple[Learnable, ...] = ("scores", "rates")
    learn = both if config.learn == "both" else (config.learn,)
    pattern = None if config.pattern == "none" else config.pattern
    fixed = pattern is not None and not pattern.startswith("n:")
    pruner = GradualPruner(
        model,
        None if fixed else config.density,
        learn=learn,
        scores=initial_scores_of(run, model, config.scores),
        rates=None if fixed else config.rates,
        budget=config.budget,
        control=config.control,
        pattern=pattern,
        **covered(run, model),
        round_to=config.round_to,
        schedule=schedule_until(config.schedule, 1.0),
        last_cut=config.last_cut,
        example_inputs=run.example,
    )
    # 2. theta = argmin E[L_robust(theta * m)], m by magnitude, from density 1 to k / last_cut
    train(run, "shrink", model, shrink, pruner=pruner, phase="shrink", sharing=weights)
    # 3. s = argmin E[L_robust(theta * m(s))], theta frozen, density falling to k
    train(run, "prune", model, config.prune, pruner=pruner, phase="prune")
    # 4. theta = argmin E[L_robust(theta * m)], m fixed at exactly the budget
    train(run, "finetune", model, finetune, pruner=pruner, sharing=weights)
    return finished(run, pruner)
