"""Settings that would only fail hours later, refused before anything is trained."""

from __future__ import annotations

import math

from robust_plugin.attacks import pgd
from robust_plugin.budget import check_density
from robust_plugin.recipes.config import DataConfig, RecipeConfig
from robust_plugin.smoothing import Smoothed


def check_settings(config: RecipeConfig) -> None:
    """Raise a ValueError for a setting that would only fail hours later."""
    check_density(config.density)
    check_folder(config.data)
    for name, value in (
        ("pretrain.epochs", config.pretrain.epochs),
        ("prune.epochs", config.prune.epochs),
        ("data.batch_size", config.data.batch_size),
        ("evaluation.batch_size", config.evaluation.batch_size),
        ("accumulate", config.accumulate),
        ("threads", 1 if config.threads is None else config.threads),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; legal: at least 1.")
    learned = hasattr(config, "scores")
    if config.finetune.epochs < (0 if learned else 1):
        legal = "0 (weights as they were) or more" if learned else "at least 1"
        raise ValueError(f"finetune.epochs is {config.finetune.epochs}; legal: {legal}.")
    for stage in ("pretrain", "prune", "finetune"):
        if not 0 < (lr := getattr(config, stage).lr) < math.inf:
            raise ValueError(f"{stage}.lr is {lr}; legal: above 0.")
    for count in ("autoattack", "verify", "smooth"):
        if (value := getattr(config.evaluation, count)) < 0:
            raise ValueError(f"evaluation.{count} is {value}; legal: 0 or more.")
    _check_structure(config)
    threat = config.threat.build()
    for each in (config.pretrain, config.prune, config.finetune):
        config.objective.build(threat, ramp=each.ramp)
    Smoothed(config.objective.sigma, n=config.evaluation.votes)
    pgd(threat, steps=config.objective.steps)  # of the validation
    pgd(threat, steps=config.evaluation.steps, restarts=config.evaluation.restarts)


def check_folder(data: DataConfig) -> None:
    """Raise a ValueError for a folder that nobody would read, where digits are learned instead."""
    if data.name == "digits" and data.folder is not None:
        raise ValueError(
            f"data.folder is {data.folder}, but data.name is 'digits', which reads none; give "
            "--data.name too: folder, cifar10, cifar100 or svhn."
        )


def _check_structure(config: RecipeConfig) -> None:
    """Raise a ValueError for settings of weights beside channels, or of channels beside weights."""
    if config.round_to < 1:
        raise ValueError(f"round_to is {config.round_to}; legal: 1 (any count) or more.")
    pattern = getattr(config, "pattern", "none")
    if getattr(config, "learn", "both") == "scores" and pattern != "none":
        raise ValueError(
            f"pattern is {pattern!r}, whose n each layer learns, but learn is 'scores'; take learn "
            "both or rates, or hydra with a pattern such as 2:4."
        )
    if config.structure == "channels" and config.rates == "erk":
        raise ValueError(
            "rates is 'erk', which follows the shapes of weights; for channels legal are uniform, "
            "lamp and global."
        )
    if config.structure == "channels" and pattern != "none":
        raise ValueError(
            f"pattern is {pattern!r}, but structure is 'channels', and a pattern is of weights; "
            "take pattern none, or structure weights."
        )
    if config.structure == "weights" and config.budget == "channels":
        raise ValueError(
            "budget is 'channels', but structure is 'weights'; take budget params or flops, or "
            "structure channels."
        )
    if config.structure == "weights" and config.round_to > 1:
        raise ValueError(
            f"round_to is {config.round_to}, but structure is 'weights'; take round_to 1, or "
            "structure channels."
        )
