"""Checks of settings before training.

Without these checks, a run would fail only after hours of training, when a later stage or the
evaluation uses the setting for the first time.
"""

from __future__ import annotations

import math

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.budget.budget import check_density
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.data.load import check_folder
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.threat.units import parse_eps


def check_settings(config: RecipeConfig) -> None:
    """Raise a ValueError for a setting that would fail only after hours of training.

    Args:
        config: all settings of a run.
    """
    check_density(config.density)
    check_folder(config.data)
    for name, value in (
        ("pretrain.epochs", config.pretrain.epochs),
        ("prune.epochs", config.prune.epochs),
        ("data.batch_size", config.data.batch_size),
        ("evaluation.batch_size", config.evaluation.batch_size),
        ("evaluation.votes", config.evaluation.votes),
        ("accumulate", config.accumulate),
        ("threads", 1 if config.threads is None else config.threads),
    ):
        at_least(name, value, 1)
    epochs = config.finetune.epochs
    if not hasattr(config, "scores"):
        at_least("finetune.epochs", epochs, 1)
    elif epochs < 0:  # recipes that learn scores can leave out fine-tuning
        raise ValueError(f"finetune.epochs is {epochs}; legal: 0 (weights as they were) or more.")
    for name in ("pretrain", "prune", "finetune"):
        stage: StageConfig = getattr(config, name)
        for setting, right, legal in (
            ("lr", 0 < stage.lr < math.inf, "above 0"),
            ("momentum", 0 <= stage.momentum < 1, "0 or more, below 1"),
            ("weight_decay", 0 <= stage.weight_decay < math.inf, "0 or more"),
            ("ramp", 0 <= stage.ramp <= 1, "0 to 1"),
        ):
            if not right:
                value = getattr(stage, setting)
                raise ValueError(f"{name}.{setting} is {value}; legal: {legal}.")
        if stage.decay_scores and name != "prune":
            raise ValueError(
                f"{name}.decay_scores is True, but only the prune phase trains scores; set "
                "prune.decay_scores, or leave it out."
            )
    for name, value in (
        ("evaluation.autoattack", config.evaluation.autoattack),
        ("evaluation.verify", config.evaluation.verify),
        ("evaluation.smooth", config.evaluation.smooth),
        ("evaluation.curve", config.evaluation.curve),
        ("data.workers", config.data.workers),
    ):
        at_least(name, value, 0)
    _check_inner_attack(config.objective)
    _check_regularizers(config)
    _check_schedule(config)
    _check_structure(config)
    _check_hinge(config)
    threat = config.threat.build()
    for each in (config.pretrain, config.prune, config.finetune):
        build_objective(config.objective, threat, ramp=each.ramp)
    Smoothed(config.objective.sigma, n=config.evaluation.votes)
    pgd(threat, steps=config.objective.steps)  # the attack of the validation
    pgd(threat, steps=config.evaluation.steps, restarts=config.evaluation.restarts)


def at_least(name: str, value: int, least: int) -> None:
    """Raise a ValueError if an integer setting is too small.

    Args:
        name: name of the setting, for the error message.
        value: value of the setting.
        least: smallest legal value.
    """
    if value < least:
        legal = "0 or more" if least == 0 else f"at least {least}"
        raise ValueError(f"{name} is {value}; legal: {legal}.")


def _check_inner_attack(objective: ObjectiveConfig) -> None:
    """Raise a ValueError for illegal settings of the attack that makes the training examples.

    The settings are checked for all objectives, also for those that train without an attack.
    """
    at_least("objective.replays", objective.replays, 1)
    size = objective.step_size
    if size is not None and parse_eps(size, name="objective.step_size") == 0:
        raise ValueError(
            f"objective.step_size is {size}, by which no attack moves; legal: above 0, or None for "
            "2.5 eps / steps."
        )


def _check_regularizers(config: RecipeConfig) -> None:
    """Raise a ValueError for illegal settings of what is added to the training loss."""
    own = config.regularizers
    for name, right, legal in (
        ("distill", 0 <= own.distill <= 1, "0 to 1"),
        ("average", 0 <= own.average < 1, "0 (no average) or more, below 1"),
        ("weight_perturbation", 0 <= own.weight_perturbation < math.inf, "0 or more"),
        ("score_perturbation", 0 <= own.score_perturbation < math.inf, "0 or more"),
    ):
        if not right:
            raise ValueError(f"regularizers.{name} is {getattr(own, name)}; legal: {legal}.")
    if own.weight_perturbation or own.score_perturbation:
        if config.accumulate > 1:
            raise ValueError(
                f"accumulate is {config.accumulate}, and a perturbation of weights or scores needs "
                "the gradient of the whole batch; take accumulate 1, or leave "
                "regularizers.weight_perturbation and regularizers.score_perturbation out."
            )
        if config.objective.name == "free":
            raise ValueError(
                "the objective free takes its perturbation from the backward pass of each step, "
                "which a perturbation of weights or scores replaces; take another objective."
            )


def _check_schedule(config: RecipeConfig) -> None:
    """Raise a ValueError for settings of the schedule that are illegal or contradict each other."""
    last_cut = getattr(config, "last_cut", 0.5)
    if not 0 < last_cut < 1:
        raise ValueError(
            f"last_cut is {last_cut}; legal: the share of the shrunk network that the phase prune "
            "keeps, above 0 and below 1."
        )
    shrink, rounds = getattr(config, "shrink", None), getattr(config, "rounds", 1)
    if shrink is not None and not 0 < shrink <= 1:
        raise ValueError(f"shrink is {shrink}; legal: a share of the epochs, above 0, at most 1.")
    schedule = getattr(config, "schedule", "at_once")
    if rounds > 1 and schedule != "at_once":
        raise ValueError(
            f"rounds is {rounds}, but schedule is {schedule!r}, which prunes in many small cuts; "
            "take rounds 1, or schedule at_once."
        )


def _check_structure(config: RecipeConfig) -> None:
    """Raise a ValueError for settings that do not fit the structure: weights or channels.

    The settings are ``round_to``, ``pattern``, ``rates`` (the layer densities) and ``budget``. Some
    of their values are legal only for weights, others only for channels.
    """
    if config.round_to < 1:
        raise ValueError(f"round_to is {config.round_to}; legal: 1 (any count) or more.")
    pattern = getattr(config, "pattern", "none")
    if getattr(config, "learn", "both") == "scores" and pattern.startswith("n:"):
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


def _check_hinge(config: RecipeConfig) -> None:
    """Raise a ValueError for settings of HARP's hinge penalty in a run that trains without it."""
    learn, control = getattr(config, "learn", "both"), getattr(config, "control", "held")
    if learn == "scores" and control == "hinge":
        raise ValueError(
            "control is 'hinge', but learn is 'scores', and rates that are given meet the budget "
            "without one; take control held, or learn both or rates."
        )
    step = getattr(config, "gamma_step", None)
    if step is not None and not step > 0:
        raise ValueError(f"gamma_step is {step}; legal: above 0.")
    if step is not None and control != "hinge" and step != type(config).gamma_step:  # type: ignore[attr-defined]
        raise ValueError(
            f"gamma_step is {step}, but control is {control!r}, which has no hinge; take control "
            "hinge, or leave gamma_step out."
        )
