"""Objectives for randomized smoothing, which train classifiers to be right under Gaussian noise.

Noisy inputs are not clipped to the range [low, high] of clean inputs, because the certificate of
randomized smoothing holds for noise that is not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import guarded
from robust_plugin.attacks.logits import check_logits, check_pairs, outputs_of
from robust_plugin.attacks.losses import kl_divergence
from robust_plugin.objectives.by_attack import Objective, check_beta, cross_entropy
from robust_plugin.objectives.ramp import Ramp, check_ramp
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.random import normal_like
from robust_plugin.runtime.values import check_call, is_whole
from robust_plugin.threat.model import ThreatModel, check_threat, per_point
from robust_plugin.threat.units import check_box, check_sigma, check_units


@explain_wrong_calls
def gaussian(*, sigma: float = 0.25, low: float = 0.0, high: float = 1.0) -> Objective:
    """Return the objective CE(f(x + sigma N), y), with the network f and noise N from N(0, 1).

    Cohen et al. 2019, section 3.3; HYDRA uses it on ImageNet. The returned objective raises a
    ValueError for inputs outside [low, high], because sigma would have another unit there.

    Args:
        sigma: standard deviation of the noise, in input units.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: unless sigma > 0 and low < high.
    """
    check_box(low, high)
    check_sigma(sigma, low, high)

    @explain_wrong_calls
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        check_units(x, low, high, "gaussian")
        return cross_entropy(outputs_of(model, x + sigma * normal_like(x)), y)

    return objective


@explain_wrong_calls
@dataclass
class SmoothAdv:
    """The objective that ``smoothadv`` returns.

    Attributes:
        threat: threat model of the attack, with norm L2 and the eps of the end of the ramp.
        sigma: standard deviation of the noise, in input units.
        samples: number of noise samples per point.
        steps: number of steps of the attack.
        ramp: schedule of eps.
        risen: present value of the ramp, in [0, 1]; eps is this share of ``threat.eps``.
    """

    threat: ThreatModel
    sigma: float
    samples: int
    steps: int
    ramp: Ramp
    risen: float = field(default=1.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Set eps to its value after ``epoch`` of ``epochs`` epochs."""
        self.risen = self.ramp.at(epoch, epochs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch; attack and loss use the same noise.

        Args:
            model: network to train; the attack runs in evaluation mode.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
        """
        check_call(model, x, y)
        if not x.is_floating_point():  # the noise has the dtype of x
            self.threat.check_inputs(x)
        check_pairs(x, y)
        noise = self.sigma * normal_like(x, samples=self.samples)

        def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return self._ascend(network, x, y, noise)

        x_adv = guarded(attack, self.threat)(model, x, y)
        return cross_entropy(model((x_adv + noise).flatten(0, 1)), y.repeat(self.samples))

    def _ascend(self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Return adversarial inputs for the smoothed classifier, found by gradient ascent.

        Args:
            model: network in evaluation mode.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
            noise: noise samples, shape [samples, B, ...].
        """
        ball, x_adv = self.threat.with_radius(self.risen * self.threat.eps), x.clone()
        for _ in range(self.steps):
            x_adv.requires_grad_()
            noisy, labels = (x_adv + noise).flatten(0, 1), y.repeat(self.samples)
            log_p = check_logits(model(noisy), labels).log_softmax(1)
            # Its logsumexp is log of the mean over samples of softmax(f)_y, up to a constant.
            right = log_p.gather(1, labels[:, None].long()).view(self.samples, len(x))
            (grad,) = torch.autograd.grad(-right.logsumexp(0).sum(), x_adv)
            length = grad.flatten(1).norm(dim=1).clamp(min=1e-12)
            moved = x_adv.detach() + 2 * ball.eps / self.steps * grad / per_point(length, grad)
            x_adv = ball.project(moved, x)
        return x_adv


@explain_wrong_calls
def smoothadv(
    threat: ThreatModel,
    *,
    sigma: float = 0.25,
    samples: int = 2,
    steps: int = 10,
    ramp: Ramp | None = None,
) -> SmoothAdv:
    """Return the objective of SmoothAdv: the mean of CE(f(x' + sigma N_i), y) over i.

    f is the network, and each N_i is noise from N(0, 1). x' is an adversarial input of the smoothed
    classifier: an attack ascends -log mean_i softmax(f(x' + sigma N_i))_y in the L2 ball around x,
    by steps of length 2 eps / steps and with the same N_i (Salman et al. 2019, equations 5 and 6,
    algorithm 1).

    Args:
        threat: threat model of the attack, with norm L2.
        sigma: standard deviation of the noise, in input units.
        samples: number of noise samples N_i per point.
        steps: number of steps of the attack, which runs in evaluation mode.
        ramp: schedule of eps; default: the full eps from the start (the paper: a ramp over the
            first 10 of 150 epochs).

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: if the norm is not L2, sigma <= 0, or samples or steps are below 1.
    """
    if check_threat(threat).norm != "L2":
        raise ValueError(f"the threat model's norm is {threat.norm}; smoothadv moves in L2.")
    check_sigma(sigma, threat.low, threat.high)
    if not all(is_whole(count) and count >= 1 for count in (samples, steps)):
        raise ValueError(f"samples is {samples!r} and steps {steps!r}; legal: at least 1, whole.")
    return SmoothAdv(threat, sigma, samples, steps, check_ramp(ramp, Ramp(0.0, 0.0)))


@explain_wrong_calls
def stability(
    *, sigma: float = 0.25, beta: float = 6.0, low: float = 0.0, high: float = 1.0
) -> Objective:
    """Return the objective CE(f(x), y) + beta KL(f(x) || f(x + sigma N)) of stability training.

    f is the network, and N is noise from N(0, 1). HYDRA, section 4, uses this objective to train
    networks for randomized smoothing. The noisy inputs are not clipped to [low, high]. The returned
    objective raises a ValueError for clean inputs outside [low, high], because sigma would have
    another unit there.

    Args:
        sigma: standard deviation of the noise, in input units.
        beta: weight of the KL term, at least 0.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: unless beta >= 0, sigma > 0 and low < high.
    """
    check_beta(beta)
    check_box(low, high)
    check_sigma(sigma, low, high)

    @explain_wrong_calls
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        check_units(x, low, high, "stability")
        clean, noisy = outputs_of(model, x), model(x + sigma * normal_like(x))
        return cross_entropy(clean, y) + beta * kl_divergence(clean, noisy).mean()

    return objective
