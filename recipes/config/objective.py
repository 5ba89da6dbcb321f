"""The settings of a recipe's loss, which is the same in pretrain, prune and finetune."""

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
        name: loss to train with. benign is cross-entropy without attacks; adversarial, trades, mart
            and free use attacks; certified and mixtrain use provable bounds; stability, gaussian
            and smoothadv train for randomized smoothing.
        steps: number of gradient steps of the attack in the losses "adversarial", "trades", "mart"
            and "smoothadv", and of the attack on the validation points.
        step_size: step size of the attack in the losses "adversarial", "trades", "mart" and "free",
            as a number or a fraction such as 2/255. None for eps in the loss "free", and for 2.5
            eps / steps in the other losses.
        beta: weight of the robust term in the losses "trades", "mart" and "stability". None for the
            value of the paper that proposed the loss (trades 6, mart 5, stability 6).
        replays: with the loss "free" (free adversarial training): number of optimizer steps in a
            row on each batch; the number of epochs is divided by it.
        sigma: standard deviation of the Gaussian noise, where pixels are in [0, 1], in the losses
            "stability", "gaussian" and "smoothadv" and in the certificates of evaluation.smooth.
        samples: number of noisy copies of each point in the loss "smoothadv".
        bounds: bounds in the loss "certified": ibp, or crown-ibp, whose bounds gradually turn into
            those of ibp while eps grows.
        kappa: weight of the cross-entropy on clean points in the loss "certified": two numbers in
            [0, 1], the first while eps begins to grow and the second once eps is at its full value.
            pretrain.ramp, prune.ramp and finetune.ramp set for how long eps grows.
        ramp: shape of the curve by which eps and the loss weights go to their final values in the
            losses "certified", "mixtrain" and "smoothadv": linear, or smoothed (a quartic at first,
            then linear). pretrain.ramp, prune.ramp and finetune.ramp set how long it lasts in each
            phase.
        nrs: weight of the regulariser normalised ReLU stability (Li et al. 2022) in the loss
            "certified"; the paper uses 0.01, and 0 leaves the regulariser out.
        points: number of points of each batch that bounds are computed for in the loss "mixtrain";
            HYDRA takes 1 for large networks and 5 for small ones.
        eps_factor: factor on the eps of the threat model in training, for the losses "certified"
            and "mixtrain"; the preset hydra/cifar10-cnn-small-crown-ibp uses 1.1.
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
