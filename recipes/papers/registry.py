"""All recipes by name, and the functions that run one of them.

``RECIPES`` maps the name of a recipe to its settings, its training stages and its function.
``execute`` trains a recipe in a folder, evaluates its final network and returns the report;
``train_and_evaluate`` does so for a run that is already there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.evaluate.end_of_run import (
    check_evaluation,
    evaluate_run,
    expect_evaluation,
)
from robust_plugin.recipes.papers.gradual import GradualConfig, gradual, parts_of
from robust_plugin.recipes.papers.harp import HarpConfig, harp
from robust_plugin.recipes.papers.hydra import HydraConfig, hydra
from robust_plugin.recipes.papers.magnitude import MagnitudeConfig, magnitude, rounds_of
from robust_plugin.recipes.training.length import length_of
from robust_plugin.recipes.training.loop import pretrained
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import (
    kept_channels,
    refuse_early,
    small_network,
)


@dataclass(frozen=True)
class Recipe:
    """One method: its settings, its training stages and its code.

    Attributes:
        config: dataclass of the recipe's settings.
        stages: function (settings) -> settings of the training stages by name, in the order they
            are trained.
        run: function (run, settings) -> final network, which is pruned and has no masks; the recipe
            dense returns the dense network.
    """

    config: type[RecipeConfig]
    stages: Callable[[Any], dict[str, StageConfig]]
    run: Callable[[Run, Any], nn.Module]


def _dense_stages(config: RecipeConfig) -> dict[str, StageConfig]:
    """Return the stage that trains the dense network; an empty dict if a checkpoint is given."""
    return {} if config.checkpoint is not None else {"pretrain": config.pretrain}


def _magnitude_stages(config: MagnitudeConfig) -> dict[str, StageConfig]:
    """Return the stages of magnitude: pre-training, and one fine-tuning per round of pruning."""
    return _dense_stages(config) | rounds_of(config)


def _learned_stages(config: RecipeConfig) -> dict[str, StageConfig]:
    """Return the stages of hydra and harp; without finetune if it has 0 epochs."""
    stages = _dense_stages(config) | {"prune": config.prune}
    return {**stages, "finetune": config.finetune} if config.finetune.epochs else stages


def _gradual_stages(config: GradualConfig) -> dict[str, StageConfig]:
    """Return the stages of gradual: pre-training, shrink, prune and finetune."""
    shrink, finetune = parts_of(config)
    stages = {"shrink": shrink, "prune": config.prune, "finetune": finetune}
    return _dense_stages(config) | stages


RECIPES: dict[str, Recipe] = {
    "gradual": Recipe(config=GradualConfig, stages=_gradual_stages, run=gradual),
    "magnitude": Recipe(config=MagnitudeConfig, stages=_magnitude_stages, run=magnitude),
    "hydra": Recipe(config=HydraConfig, stages=_learned_stages, run=hydra),
    "harp": Recipe(config=HarpConfig, stages=_learned_stages, run=harp),
    "dense": Recipe(
        config=RecipeConfig, stages=_dense_stages, run=lambda run, config: pretrained(run)
    ),
}


def execute(name: str, config: RecipeConfig, folder: Path) -> Report:
    """Train a recipe and evaluate its final network; an interrupted run is continued.

    Args:
        name: gradual, magnitude, hydra, harp or dense.
        config: settings of the recipe.
        folder: folder of the run.

    Returns:
        Report: the evaluation on the test points. If channels were pruned, it is that of the
        smaller network, from which they are removed.
    """
    return train_and_evaluate(name, Run(folder, config))


def train_and_evaluate(name: str, run: Run) -> Report:
    """Train the recipe of a run and evaluate its final network, as ``execute`` does.

    Args:
        name: gradual, magnitude, hydra, harp or dense.
        run: the run, with the settings of this recipe.
    """
    if not (run.folder / "model.safetensors").is_file():  # otherwise there is nothing to train
        expect_evaluation(run, run.fresh_model(), trained=False)
    model = train_recipe(name, run)
    run.acceleration.close()
    if name == "dense" or run.config.structure == "weights":
        return evaluate_run(run, model)
    small = small_network(run, model)
    return evaluate_run(run, model, small=small, kept=kept_channels(run))


def recipe_of(run: Run) -> str:
    """Return the name of the recipe that the settings of a run belong to."""
    return next(name for name, recipe in RECIPES.items() if type(run.config) is recipe.config)


def finished_run(folder: Path) -> Run:
    """Return the run that a folder holds, with the settings from its config.json.

    Args:
        folder: folder of the run.

    Raises:
        ValueError: if the folder has no config.json, or if that names an unknown recipe.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json.")
    content = json.loads(path.read_text())
    kinds = {recipe.config.__name__: recipe.config for recipe in RECIPES.values()}
    kind = kinds.get(content.pop("recipe", ""))
    if kind is None:
        raise ValueError(f"{path} names no recipe; legal: {', '.join(kinds)}.")
    return Run(folder, build(kind, content, where=str(path)))


def train_recipe(name: str, run: Run) -> nn.Module:
    """Train all stages of a recipe and return its final network, without evaluating it.

    Args:
        name: gradual, magnitude, hydra, harp or dense.
        run: the run, with the settings of this recipe; stages that are already finished are not
            trained again.
    """
    recipe = RECIPES[name]
    check_evaluation(run)
    stages = recipe.stages(run.config)
    run.begin({stage: length_of(run, settings).steps for stage, settings in stages.items()})
    if name != "dense":
        refuse_early(run)
    return recipe.run(run, run.config)
