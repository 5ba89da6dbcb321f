"""The training objective of a run, built from its settings.

All stages of a recipe use the same objective, except benign pre-training.
"""

from __future__ import annotations

from dataclasses import replace

from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.certificates.contract import Bounds, Certifier
from robust_plugin.certificates.ibp import IBP, ibp_margins
from robust_plugin.objectives.by_attack import Free, Objective, adversarial, benign, mart, trades
from robust_plugin.objectives.by_bounds import certified, mixtrain
from robust_plugin.objectives.by_noise import gaussian, smoothadv, stability
from robust_plugin.objectives.ramp import Ramp
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.threat.model import ThreatModel


def build_objective(
    config: ObjectiveConfig, threat: ThreatModel, *, ramp: float = 0.0
) -> Objective:
    """Return the training objective that settings describe.

    Args:
        config: settings of the objective.
        threat: threat model to train against.
        ramp: share of the training stage, from 0 to 1, over which the objectives certified,
            mixtrain and smoothadv raise eps and their loss weights to the final values.

    Raises:
        ValueError: if a setting is illegal, or if the objective does not support the threat model.
    """
    if config.name in ("certified", "mixtrain"):
        return _by_bounds(config, threat, Ramp(0.0, ramp, config.ramp))
    if config.name in ("stability", "gaussian", "smoothadv"):
        return _by_noise(config, threat, Ramp(0.0, ramp, config.ramp))
    steps, size = config.steps, config.step_size
    if config.name == "benign":
        return benign
    if config.name == "adversarial":
        return adversarial(pgd(threat, steps=steps, step_size=size))
    if config.name == "free":
        return Free(threat, step_size=size)
    if config.name == "trades":
        beta = 6.0 if config.beta is None else config.beta
        return trades(threat, beta=beta, steps=steps, step_size=size)
    beta = 5.0 if config.beta is None else config.beta
    return mart(threat, beta=beta, steps=steps, step_size=size)


def _by_bounds(config: ObjectiveConfig, threat: ThreatModel, ramp: Ramp) -> Objective:
    """Return the objective certified or mixtrain, for eps times ``config.eps_factor``."""
    if not config.eps_factor > 0:
        raise ValueError(f"objective.eps_factor is {config.eps_factor}; legal: above 0.")
    threat = replace(threat, eps=config.eps_factor * threat.eps)
    if config.name == "mixtrain":
        bounds: Bounds = LiRPA(threat, "same-slope").bounds
        return mixtrain(threat, bounds=bounds, points=config.points, ramp=ramp)
    bounds = LiRPA(threat, "CROWN-IBP").bounds if config.bounds == "crown-ibp" else ibp_margins
    return certified(threat, bounds=bounds, kappa=config.kappa, ramp=ramp, nrs=config.nrs)


def _by_noise(config: ObjectiveConfig, threat: ThreatModel, ramp: Ramp) -> Objective:
    """Return the objective gaussian, smoothadv or stability."""
    if config.name == "gaussian":
        return gaussian(sigma=config.sigma)
    if config.name == "smoothadv":
        noise = {"sigma": config.sigma, "samples": config.samples, "steps": config.steps}
        return smoothadv(threat, **noise, ramp=ramp)  # type: ignore[arg-type]
    return stability(sigma=config.sigma, beta=6.0 if config.beta is None else config.beta)


def validation_certifier(config: ObjectiveConfig, threat: ThreatModel) -> Certifier | None:
    """Return the certifier that measures robust accuracy on the validation points.

    It is IBP for the objective certified, and the bounds of the training for mixtrain. It is None
    for all other objectives, which are validated under an attack.
    """
    if config.name == "certified":
        return IBP(threat)
    if config.name != "mixtrain":
        return None
    # If training bounds one point at a time to save memory, validation does so too.
    return LiRPA(threat, "same-slope", batch_size=1 if config.points == 1 else 32)
