"""The loss of a recipe, as settings: one objective for all three phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robust_plugin.objectives.ramp import Shape

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
