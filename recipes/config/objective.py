"""The settings of a recipe's loss, as a frozen dataclass: one objective for all three phases."""

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
    """The training loss, the same one in all phases.

    Attributes:
        name: loss to train with: benign (cross-entropy without attacks), adversarial, trades, mart
            or free (by attacks), certified or mixtrain (by provable bounds), stability, gaussian or
            smoothadv (for randomized smoothing).
        steps: number of gradient steps of the attack in the losses adversarial, trades, mart and
            smoothadv, and of the attack on the validation points.
        step_size: step size of the attack in the loss, as a number or a fraction such as 2/255;
            None for 2.5 eps / steps, and for the loss free for eps.
        beta: weight of the robust term in the losses trades, mart and stability; None for the
            value of its paper (trades 6, mart 5, stability 6).
        replays: number of times that the loss free trains on each batch in a row; the number of
            epochs is divided by it.
        sigma: standard deviation of the Gaussian noise in the losses stability, gaussian and
            smoothadv, where pixels are in [0, 1].
        samples: number of noise samples per point in the loss smoothadv.
        bounds: bounds that the loss certified uses: ibp, or crown-ibp, which changes gradually to
            ibp during the ramp.
        kappa: weight of the clean loss in the loss certified, at the start and at the end of the
            ramp: two numbers in [0, 1].
        ramp: shape of the curve by which eps and the loss weights grow in the losses certified,
            mixtrain and smoothadv: linear, or smoothed (a quartic at first, then linear). Its
            length is set for each phase by pretrain.ramp, prune.ramp and finetune.ramp.
        nrs: weight of the regulariser "normalised ReLU stability" in the loss certified; its paper
            uses 0.01, and 0 leaves it out.
        points: number of points of each batch that the loss mixtrain computes bounds for; its paper
            takes 1 for large networks and 5 for small ones.
        eps_factor: factor by which the losses certified and mixtrain train with a larger eps than
            that of the threat model; CIFAR recipes use 1.1.
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
