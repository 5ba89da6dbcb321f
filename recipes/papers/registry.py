"""Run one recipe: a name, settings and a folder in; a report out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.evaluate.finish import check_evaluation, evaluate_run
from robust_plugin.recipes.papers.harp import HarpConfig, harp
from robust_plugin.recipes.papers.hydra import HydraConfig, hydra
from robust_plugin.recipes.papers.magnitude import MagnitudeConfig, magnitude
from robust_plugin.recipes.training.loop import pretrained
from robust_plugin.recipes.training.run import Run, length_of
from robust_plugin.recipes.training.structure import kept_channels, refuse_early, small_network

# Each recipe's settings, and the function (run, settings) -> pruned network.
RECIPES: dict[str, tuple[type[RecipeConfig], Callable[[Run, Any], nn.Module]]] = {
    "magnitude": (MagnitudeConfig, magnitude),
    "hydra": (HydraConfig, hydra),
    "harp": (HarpConfig, harp),
    "dense": (RecipeConfig, lambda run, config: pretrained(run)),
}


def execute(name: str, config: RecipeConfig, folder: Path) -> Report:
    """Run a recipe to its end, or what is left of it, and evaluate the network it returns."""
    run = Run(folder, config)
    model = train_recipe(name, run)
    run.acceleration.close()
    if name == "dense" or config.structure == "weights":
        return evaluate_run(run, model)
    small = small_network(run, model)
    return evaluate_run(run, model, small=small, kept=kept_channels(run))


def finished_run(folder: Path) -> Run:
    """Return a run as its folder has it.

    Raises:
        ValueError: if the folder holds none, or one of an unknown recipe.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json.")
    content = json.loads(path.read_text())
    kinds = {kind.__name__: kind for kind, _ in RECIPES.values()}
    kind = kinds.get(content.pop("recipe", ""))
    if kind is None:
        raise ValueError(f"{path} names no recipe; legal: {', '.join(kinds)}.")
    return Run(folder, build(kind, content, where=str(path)))


def train_recipe(name: str, run: Run) -> nn.Module:
    """Run a recipe up to its finished network."""
    _, recipe = RECIPES[name]
    check_evaluation(run)
    stages = stages_of(name, run.config)
    run.begin({each: length_of(run, of).steps for each, of in stages.items()})
    if name != "dense":
        refuse_early(run)
    return recipe(run, run.config)


def stages_of(recipe: str, config: RecipeConfig) -> dict[str, StageConfig]:
    """Return the stages that a recipe trains, by name, in their order.

    Args:
        recipe: magnitude, hydra, harp or dense.
        config: its settings.
    """
    stages = {} if config.checkpoint is not None else {"pretrain": config.pretrain}
    if recipe == "magnitude":
        from robust_plugin.recipes.papers.magnitude import MagnitudeConfig, rounds_of

        return stages | rounds_of(cast(MagnitudeConfig, config))
    if recipe == "dense":
        return stages
    stages["prune"] = config.prune
    return {**stages, "finetune": config.finetune} if config.finetune.epochs else stages
