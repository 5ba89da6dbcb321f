"""Recipes on channels: what a mask covers, the network that is left, and a table of both.

A setting of the recipes and no command of its own: the phases, the objective and the budget are the
papers', and only what shares a score differs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.pruning.presets import MagnitudePruner
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.pruning.scores import ScoreName, Scores, scaled_magnitude, snip_scores
from robust_plugin.recipes.data.datasets import loader
from robust_plugin.recipes.models.registry import example_of
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of


def covered(run: Run, model: nn.Module) -> dict[str, Any]:
    """Return the pruner's ``groups`` and ``exclude`` for the run's structure."""
    config = run.config
    if config.structure == "weights":
        return {"groups": None, "exclude": config.exclude}
    from robust_plugin.adapters.torch_pruning import channel_groups

    return {"groups": channel_groups(model, run.example, ignored=config.exclude), "exclude": ()}


def refuse_early(run: Run) -> None:
    """Raise for a network or a budget that channels cannot be removed by, before it is trained.

    Raises:
        ValueError: as ``channel_groups`` and the pruner.
    """
    if run.config.structure == "weights":
        return
    model = run.fresh_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again, once, when the pruner is attached
        groups = covered(run, model)
    MagnitudePruner(
        model,
        run.config.density,
        budget=run.config.budget,
        round_to=run.config.round_to,
        **groups,
        example_inputs=run.example,
    )


def finished(run: Run, pruner: Pruner) -> nn.Module:
    """Finalize a pruner; of channels write the network without them to small.safetensors.

    Returns:
        nn.Module: the plain network in its old shape, zeros in place.
    """
    if run.config.structure == "channels":
        from robust_plugin.adapters.torch_pruning import remove_channels, save

        removed = remove_channels(pruner, run.example)
        if is_first():
            run.folder.mkdir(parents=True, exist_ok=True)
            save(run.folder / "small.safetensors", removed)
            sizes = {group.name: group.size for group in pruner.groups}
            kept = {name: [count, sizes[name]] for name, count in removed.counts.items()}
            write_text(run.folder / "channels.json", json.dumps(kept, indent=1))
        wait_for_all()
    pruner.finalize()
    return pruner.model


def small_network(run: Run, model: nn.Module) -> nn.Module:
    """Return the network without its channels, as the run's small.safetensors has it."""
    small = without_channels(run.folder / "small.safetensors", model, run.data.shape)
    return small.to(run.device)


def without_channels(path: Path, model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return the network that a small.safetensors holds, cut from one of the old architecture.

    Args:
        path: the file.
        model: of the architecture before pruning, with any weights.
        shape: of one input.

    Raises:
        ValueError: if there is no such file, or it is of another network.
    """
    from robust_plugin.adapters.torch_pruning import load

    return load(path, copy.deepcopy(model).cpu(), example_of(shape))


def kept_channels(run: Run) -> dict[str, list[int]]:
    """Return how many of how many channels each group keeps."""
    kept: dict[str, list[int]] = json.loads((run.folder / "channels.json").read_text())
    return kept


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
