"""The scores that learning starts from, by the name a recipe's setting gives them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from robust_plugin.attacks import pgd
from robust_plugin.recipes.data import loader
from robust_plugin.recipes.identity import seed_of
from robust_plugin.recipes.run import Run
from robust_plugin.scores import ScoreName, Scores, scaled_magnitude, snip_scores

# HYDRA's ablation, section 4.2, has them all.
InitialScores = Literal[ScoreName, "snip"]


def initial_scores_of(run: Run, model: nn.Module, name: InitialScores) -> Scores:
    """Return what a pruner takes as its ``scores``.

    ``"snip"`` is |g w| (SNIP, Lee et al. 2019) on one training batch under PGD, with g of the
    cross-entropy: the loss that pruning is to keep low is the robust one. It is scaled by layer
    to the largest score that scaled magnitude has, so that only the order differs.

    Args:
        run: whose first training batch, threat model and attack steps are taken.
        model: the dense network, without a pruner; left in eval mode.
        name: of the scores.
    """
    if name != "snip":
        return name
    batches = loader(
        run.data.train,
        batch_size=run.config.data.batch_size,
        seed=seed_of(run.config.seed, "scores"),
        epoch=0,
        shuffle=True,
    )
    x, y = (tensor.to(run.device) for tensor in next(iter(batches)))
    attack = pgd(run.threat, steps=run.config.objective.steps)
    model.eval()
    found = snip_scores(model, attack(model, x, y), y)
    return {parameter: scaled_magnitude(scores) for parameter, scores in found.items()}
