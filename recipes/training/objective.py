"""The loss of a recipe, as settings: one objective for all three phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.attacks import pgd
from robust_plugin.bounds import IBP, Bounds, ibp_margins
from robust_plugin.certified import certified, mixtrain
from robust_plugin.noise import gaussian, smoothadv
from robust_plugin.objectives import Free, Objective, adversarial, benign, mart, stability, trades
from robust_plugin.ramp import Ramp, Shape
from robust_plugin.rows import Certifier
from robust_plugin.threat import ThreatModel

ObjectiveName = Literal[
    "benign",
    "adversarial",
    "trades",
    "mart",
    "free",
    "certified",
    "mixtrain",
    "stability",
    "gaussian",
    "smoothadv",
]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss, the same in all phases.

    Attributes:
        name: which one; benign or by attack (adversarial, trades, mart, free), by bounds
            (certified, mixtrain), for randomized smoothing (stability, gaussian, smoothadv).
        steps: of the attack inside.
        step_size: of the attack inside, as eps is given; None is 2.5 eps / steps.
        beta: the weight of robustness; None is the paper's: trades 6, mart 5, stability 6.
        replays: how often free training shows a batch; epochs are divided by it.
        sigma: of the noise of stability, gaussian and smoothadv, in input units.
        samples: of smoothadv's noise a point.
        bounds: of certified: ibp, or crown-ibp, which moves to ibp along the ramp.
        kappa: of certified: the weight of the clean loss where the ramp begins and where it ends.
        ramp: how eps and these weights rise: linear, or smoothed: a quartic that turns into a line.
        nrs: of certified: the weight of normalised ReLU stability; .01 in its paper.
        points: of mixtrain: sampled from each batch for bounds; 1 for large networks, 5 for small.
        eps_factor: certified and mixtrain train at this many times eps; 1.1 in CIFAR recipes.
    """

    name: ObjectiveName = "adversarial"
    steps: int = 10
    step_size: str | None = None
    beta: float | None = None
    replays: int = 4
    sigma: float = 0.25
    samples: int = 2
    bounds: Literal["ibp", "crown-ibp"] = "ibp"
    kappa: tuple[float, float] = (1.0, 0.0)
    ramp: Shape = "linear"
    nrs: float = 0.0
    points: int = 1
    eps_factor: float = 1.0


def build_objective(
    config: ObjectiveConfig, threat: ThreatModel, *, ramp: float = 0.0
) -> Objective:
    """Return the objective.

    Args:
        config: the settings.
        threat: what is tested.
        ramp: share of the phase over which eps and the weights of certified, mixtrain and
            smoothadv rise.

    Raises:
        ValueError: for illegal settings, or a threat model that the objective does not take.
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
    if not config.eps_factor > 0:
        raise ValueError(f"objective.eps_factor is {config.eps_factor}; legal: above 0.")
    threat = replace(threat, eps=config.eps_factor * threat.eps)
    if config.name == "mixtrain":
        bounds: Bounds = LiRPA(threat, "same-slope").bounds
        return mixtrain(threat, bounds=bounds, points=config.points, ramp=ramp)
    bounds = LiRPA(threat, "CROWN-IBP").bounds if config.bounds == "crown-ibp" else ibp_margins
    return certified(threat, bounds=bounds, kappa=config.kappa, ramp=ramp, nrs=config.nrs)


def _by_noise(config: ObjectiveConfig, threat: ThreatModel, ramp: Ramp) -> Objective:
    if config.name == "gaussian":
        return gaussian(sigma=config.sigma)
    if config.name == "smoothadv":
        noise = {"sigma": config.sigma, "samples": config.samples, "steps": config.steps}
        return smoothadv(threat, **noise, ramp=ramp)  # type: ignore[arg-type]
    return stability(sigma=config.sigma, beta=6.0 if config.beta is None else config.beta)


def validation_certifier(config: ObjectiveConfig, threat: ThreatModel) -> Certifier | None:
    """Return what proves validation points by the bounds that training ends with, if any."""
    if config.name == "certified":
        return IBP(threat)
    if config.name != "mixtrain":
        return None
    # Where training can bound one point at a time, for its memory, so can validation.
    return LiRPA(threat, "same-slope", batch_size=1 if config.points == 1 else 32)
