"""Training for randomized smoothing: classifiers that are right under Gaussian noise.

``stability`` is in ``objectives``. Noisy inputs are not clipped: the certificate is of unclipped
noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import guarded
from robust_plugin.attacks.logits import check_logits, check_pairs
from robust_plugin.attacks.losses import kl_divergence
from robust_plugin.objectives.by_attack import Objective, check_beta, cross_entropy
from robust_plugin.objectives.ramp import Ramp
from robust_plugin.runtime.random import normal_like
from robust_plugin.threat.model import ThreatModel, check_threat, per_point
from robust_plugin.threat.units import check_box, check_sigma, check_units


def gaussian(*, sigma: float = 0.25, low: float = 0.0, high: float = 1.0) -> Objective:
    """CE(f(x + sigma N), y) (Cohen et al. 2019, section 3.3; HYDRA on ImageNet).

    Args:
        sigma: standard deviation of the noise, in input units.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: unless sigma > 0 and low < high; when called, for inputs outside [low, high],
            where sigma would be in another unit.
    """
    check_sigma(sigma)
    check_box(low, high)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_units(x, low, high, "gaussian")
        return cross_entropy(model(x + sigma * normal_like(x)), y)

    return objective


@dataclass
class SmoothAdv:
    """The loss of SmoothAdv (see ``smoothadv``).

    Attributes:
        threat: of the end of the ramp.
        sigma: standard deviation of the noise.
        samples: of the noise a point.
        steps: of the attack.
        ramp: of eps.
        risen: how far the ramp has risen, 0 to 1.
    """

    threat: ThreatModel
    sigma: float
    samples: int
    steps: int
    ramp: Ramp
    risen: float = field(default=1.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Move eps to where it is when ``epoch`` of ``epochs`` have passed."""
        self.risen = self.ramp.at(epoch, epochs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; attack and loss share their noise."""
        check_pairs(x, y)
        noise = self.sigma * normal_like(x, samples=self.samples)

        def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return self._ascend(network, x, y, noise)

        x_adv = guarded(attack, self.threat)(model, x, y)
        return cross_entropy(model((x_adv + noise).flatten(0, 1)), y.repeat(self.samples))

    def _ascend(self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        eps, x_adv = self.risen * self.threat.eps, x.clone()
        for _ in range(self.steps):
            x_adv.requires_grad_()
            noisy, labels = (x_adv + noise).flatten(0, 1), y.repeat(self.samples)
            log_p = check_logits(model(noisy), labels).log_softmax(1)
            # log of the mean over samples of softmax(f)_y, up to a constant.
            right = log_p.gather(1, labels[:, None].long()).view(self.samples, len(x))
            (grad,) = torch.autograd.grad(-right.logsumexp(0).sum(), x_adv)
            length = grad.flatten(1).norm(dim=1).clamp(min=1e-12)
            moved = x_adv.detach() + 2 * eps / self.steps * grad / per_point(length, grad)
            delta = moved - x
            far = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
            delta = delta * per_point((eps / far).clamp(max=1), delta)
            x_adv = (x + delta).clamp(self.threat.low, self.threat.high)
        return x_adv


def smoothadv(
    threat: ThreatModel,
    *,
    sigma: float = 0.25,
    samples: int = 2,
    steps: int = 10,
    ramp: Ramp | None = None,
) -> SmoothAdv:
    """Return the mean of CE(f(x' + sigma N_i), y) over i, x' against the smoothed classifier.

    x' ascends -log mean_i softmax(f(x' + sigma N_i))_y by steps of 2 eps / steps in the L2 ball,
    the N_i held fixed (Salman et al. 2019, equations 5 and 6, algorithm 1).

    Args:
        threat: L2; eps and bounds.
        sigma: standard deviation of the noise, in input units.
        samples: of the noise a point.
        steps: of the attack, which runs in evaluation mode.
        ramp: of eps; default none, all of it at once (the paper: the first 10 epochs of 150).

    Raises:
        TypeError: for a threat that is no threat model.
        ValueError: for another norm, sigma <= 0, or counts below 1.
    """
    if check_threat(threat).norm != "L2":
        raise ValueError(f"the threat model's norm is {threat.norm}; smoothadv moves in L2.")
    check_sigma(sigma)
    if min(samples, steps) < 1:
        raise ValueError(f"samples is {samples} and steps {steps}; legal: at least 1.")
    return SmoothAdv(threat, sigma, samples, steps, ramp or Ramp(0.0, 0.0))


def stability(
    *, sigma: float = 0.25, beta: float = 6.0, low: float = 0.0, high: float = 1.0
) -> Objective:
    """CE(f(x), y) + beta KL(f(x) || f(x + sigma N)), for randomized smoothing (HYDRA, section 4).

    Args:
        sigma: standard deviation of the noise, in input units; the noisy input is not clipped.
        beta: weight of stability.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: for a negative beta, unless sigma > 0 and low < high; when called, for inputs
            outside [low, high], where sigma would be in another unit.
    """
    check_beta(beta)
    check_sigma(sigma)
    check_box(low, high)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_units(x, low, high, "stability")
        clean, noisy = model(x), model(x + sigma * normal_like(x))
        return cross_entropy(clean, y) + beta * kl_divergence(clean, noisy).mean()

    return objective
