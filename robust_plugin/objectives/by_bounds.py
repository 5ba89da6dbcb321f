"""Objectives that train on bounds of the margins: certified training and MixTrain.

Each takes a function ``bounds(model, x, y, threat)`` that returns lower bounds of the margins, such
as ``ibp_margins`` or ``LiRPA(threat, "CROWN-IBP").bounds`` of the adapter for auto-LiRPA. Call
``progress`` of the objective at each epoch, or at each step with fractions of an epoch. An
objective whose ``progress`` is never called uses the eps and the weights of the end of its
schedule.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.certificates.batch_norm import clean_pass
from robust_plugin.certificates.contract import Bounds
from robust_plugin.certificates.ibp import ibp_margins
from robust_plugin.certificates.propagation import Propagation
from robust_plugin.objectives.by_attack import cross_entropy
from robust_plugin.objectives.ramp import Ramp, check_ramp
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import innermost
from robust_plugin.runtime.random import few_of, happens
from robust_plugin.runtime.values import check_call, is_number, is_whole
from robust_plugin.threat.model import ThreatModel, check_threat


@explain_wrong_calls
@dataclass
class Certified:
    """The objective that ``certified`` returns.

    Attributes:
        threat: threat model of the bounds at the end of the ramp.
        bounds: function that returns lower bounds of the margins f_y - f_j.
        kappa: weight of the clean loss, at the start and at the end of the ramp.
        beta: weight of ``bounds``, at the start and at the end of the ramp; the bounds of IBP have
            the weight 1 - beta.
        ramp: schedule of eps, kappa and beta.
        nrs: weight of the regulariser ``nrs_loss``.
        risen: present value of the ramp, from 0 (its start) to 1 (its end).
    """

    threat: ThreatModel
    bounds: Bounds
    kappa: tuple[float, float]
    beta: tuple[float, float]
    ramp: Ramp
    nrs: float
    risen: float = field(default=1.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Set eps, kappa and beta to their values after ``epoch`` of ``epochs`` epochs."""
        self.risen = self.ramp.at(epoch, epochs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch; the clean forward pass runs in the model's present mode.

        Args:
            model: network to train.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
        """
        check_call(model, x, y)
        # Also for kappa = 0: DDP and running statistics need a forward pass of the wrapper.
        with clean_pass(model, x) as logits:
            clean, y = cross_entropy(logits, y), y.long()
            network = innermost(model)
            threat = self.threat.with_radius(self.risen * self.threat.eps)
            kappa = self._between(self.kappa)
            loss: Tensor = kappa * clean
            if kappa < 1:
                margins = self._margins(network, x, y, threat)
                loss = loss + (1 - kappa) * F.cross_entropy(-margins, y)
            if self.nrs:
                loss = loss + self.nrs * nrs_loss(network, x, threat)
        return loss

    def _margins(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """Return beta m_bounds + (1 - beta) m_IBP, lower bounds of the margins f_y - f_j.

        Their shape is [B, classes]. Bounds of weight 0 are not computed.
        """
        beta = 0.0 if self.bounds is ibp_margins else self._between(self.beta)
        if beta == 0:
            return ibp_margins(model, x, y, threat)
        margins = self.bounds(model, x, y, threat)
        return margins if beta == 1 else margins.lerp(ibp_margins(model, x, y, threat), 1 - beta)

    def _between(self, ends: tuple[float, float]) -> float:
        """Return the present value of a weight, given its values at start and end of the ramp."""
        return ends[0] + (ends[1] - ends[0]) * self.risen


@explain_wrong_calls
def certified(
    threat: ThreatModel,
    *,
    bounds: Bounds = ibp_margins,
    kappa: tuple[float, float] = (1.0, 0.0),
    beta: tuple[float, float] = (1.0, 0.0),
    ramp: Ramp | None = None,
    nrs: float = 0.0,
) -> Certified:
    """Return the objective kappa CE(f(x), y) + (1 - kappa) CE(-m, y) of certified training.

    f is the network, and m = beta m_bounds + (1 - beta) m_IBP are lower bounds of the margins
    f_y - f_j, with m_y = 0. eps rises from 0, and kappa and beta change with it, along the ramp
    (IBP: Gowal et al. 2018, section 4; CROWN-IBP: Zhang et al. 2020, equation 10; HYDRA uses
    kappa = 0 throughout). A BatchNorm in training mode uses the statistics of the clean batch both
    in f(x) and in m, and gradients flow through these statistics in both. In evaluation mode it
    uses its running statistics.

    Args:
        threat: threat model of the bounds, with norm Linf or L2. Recipes for CIFAR train with
            1.1 times the eps that they test.
        bounds: function that returns lower bounds of the margins; default IBP, for which beta has
            no effect.
        kappa: weight of the clean loss, at the start and at the end of the ramp, each in [0, 1].
        beta: weight of ``bounds``, at the start and at the end of the ramp, each in [0, 1].
        ramp: schedule of eps, kappa and beta; default: linear over the first 60 % of the epochs.
        nrs: weight of the regulariser ``nrs_loss`` of this module, at least 0; 0.01 in its paper
            (Li et al. 2022).

    Raises:
        TypeError: if ``threat`` is not a ThreatModel, or ``bounds`` cannot be called.
        ValueError: for weights outside [0, 1], or a negative ``nrs``.
    """
    check_threat(threat)
    _check_bounds(bounds)
    for name, ends in (("kappa", kappa), ("beta", beta)):
        pair = isinstance(ends, tuple | list) and len(ends) == 2
        if not (pair and all(is_number(end) and 0 <= end <= 1 for end in ends)):
            raise ValueError(f"{name} is {ends!r}; legal: two numbers (start, end) in [0, 1].")
    if not (is_number(nrs) and nrs >= 0):
        raise ValueError(f"nrs is {nrs!r}; legal: at least 0.")
    return Certified(threat, bounds, kappa, beta, check_ramp(ramp, Ramp()), nrs)


@explain_wrong_calls
@dataclass
class MixTrain:
    """The objective that ``mixtrain`` returns.

    Attributes:
        threat: threat model of the bounds at the end of the ramp.
        bounds: function that returns lower bounds of the margins f_y - f_j.
        points: number of points per batch that bounds are computed for.
        probability: probability that bounds are computed for a batch at all.
        ramp: schedule of eps.
        risen: present value of the ramp, from 0 (its start) to 1 (its end); eps is this share of
            ``threat.eps``.
        past: number of epochs since the end of the ramp.
    """

    threat: ThreatModel
    bounds: Bounds
    points: int
    probability: float
    ramp: Ramp
    risen: float = field(default=1.0, init=False)
    past: float = field(default=0.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Set eps and ``weight`` to their values after ``epoch`` of ``epochs`` epochs."""
        self.risen = self.ramp.at(epoch, epochs)
        self.past = max(0.0, epoch - self.ramp.end * epochs)

    @property
    def weight(self) -> float:
        """Weight of the loss term of the bounds, min(0.1 * 2.5^floor(past / 5), 50)."""
        return float(min(0.1 * 2.5 ** (self.past // 5), 50.0))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; the points whose bounds are computed are drawn from the whole batch.

        If the batch is split over processes or into micro-batches, each part computes the bounds of
        those drawn points that belong to it.

        Args:
            model: network to train.
            x: clean inputs of the batch, or of one part, shape [B, ...].
            y: labels, shape [B].
        """
        check_call(model, x, y)
        with clean_pass(model, x) as logits:
            loss, y = cross_entropy(logits, y), y.long()
            if happens(self.probability):
                few, count = few_of(len(x), self.points)
                if len(few):  # else no drawn point is among those of this part of the batch
                    few = few.to(x.device)
                    threat = self.threat.with_radius(self.risen * self.threat.eps)
                    margins = self.bounds(innermost(model), x[few], y[few], threat)
                    worst = F.cross_entropy(-margins, y[few], reduction="sum") / count
                    loss = loss + self.weight * worst
        return loss


@explain_wrong_calls
def mixtrain(
    threat: ThreatModel,
    *,
    bounds: Bounds,
    points: int = 1,
    probability: float = 0.8,
    ramp: Ramp | None = None,
) -> MixTrain:
    """Return the objective CE(f(x), y) + w CE(worst case of a few points, y) of MixTrain.

    The second term is added to a batch with the given probability. The worst case has the logit 0
    for the label, and upper bounds of f_j - f_y as logits of the other classes (Wang et al. 2018,
    as in HYDRA's official code, whose bounds are symbolic intervals:
    ``LiRPA(threat, "same-slope").bounds``). w = min(0.1 * 2.5^floor(e / 5), 50), e epochs after the
    end of the ramp. A BatchNorm in training mode uses the statistics of the whole clean batch for
    these points too.

    Args:
        threat: threat model of the bounds.
        bounds: function that returns lower bounds of the margins f_y - f_j.
        points: number of points per batch that bounds are computed for; HYDRA: 1 for large
            networks, 5 for small ones.
        probability: probability that bounds are computed for a batch at all, in [0, 1].
        ramp: schedule of eps; default: linear over the first 60 % of the epochs.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel, or ``bounds`` cannot be called.
        ValueError: if ``points`` is below 1, or the probability outside [0, 1].
    """
    check_threat(threat)
    _check_bounds(bounds)
    legal = is_whole(points) and points >= 1
    if not (legal and is_number(probability) and 0 <= probability <= 1):
        raise ValueError(
            f"points is {points!r} and probability {probability!r}; legal: at least 1, and 0 to 1."
        )
    return MixTrain(threat, bounds, points, probability, check_ramp(ramp, Ramp()))


def _check_bounds(bounds: object) -> None:
    if not callable(bounds):
        raise TypeError(f"bounds is {bounds!r}; give a function, such as ibp_margins.")
    try:
        inspect.signature(bounds).bind("model", "x", "y", "threat")
    except TypeError as error:
        name = getattr(bounds, "__name__", type(bounds).__name__)
        raise TypeError(
            f"{name} cannot be called as bounds(model, x, y, threat) ({error}); give ibp_margins, "
            'or the method bounds of a certifier, as LiRPA(threat, "CROWN-IBP").bounds.'
        ) from error
    except ValueError:  # some callables written in C have no signature
        return


def nrs_loss(model: nn.Module, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return -tanh(1 + l u / gamma^2), averaged over the ReLUs of a layer and summed over layers.

    This is normalised ReLU stability (NRS), Li et al. 2022, after Xiao et al. 2019, section 3. l
    and u are IBP bounds of a ReLU's input. Only unstable ReLUs count, l < 0 < u; the others add 0.
    gamma is the weight of the BatchNorm before the ReLU, detached, or 1 without one. The average
    over points and ReLUs makes the result independent of the width of a layer.

    Args:
        model: network, in the mode that the training step uses.
        x: inputs, shape [B, ...].
        threat: threat model of the bounds.
    """
    total = torch.zeros((), device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        relus = list(Propagation(model, x, threat).relu_inputs())
    for z, gamma in relus:
        product = z.lower * z.upper
        if gamma is not None:
            shape = [1, -1, *[1] * (product.dim() - 2)]
            product = product / gamma.detach().square().clamp(min=1e-6).view(shape)
        unstable = (z.lower < 0) & (z.upper > 0)
        total = total - (torch.tanh(1 + product) * unstable).mean()
    return total
