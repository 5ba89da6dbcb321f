"""Training by bounds: the verifiable objectives of certified training, with their schedules.

Each takes its bounds as a function ``bounds(model, x, y, threat)``: ``ibp_margins`` of the core, or
``LiRPA(threat, "CROWN-IBP").bounds`` of the adapter. ``progress`` is to be called at each epoch, or
at each step with fractions of an epoch; without it a loss is that of its schedule's end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.certificates.batch_norm import clean_pass
from robust_plugin.certificates.contract import Bounds
from robust_plugin.certificates.ibp import ibp_margins
from robust_plugin.certificates.propagation import Propagation
from robust_plugin.objectives.by_attack import cross_entropy
from robust_plugin.objectives.ramp import Ramp
from robust_plugin.runtime.distributed import innermost
from robust_plugin.runtime.random import few_of, happens
from robust_plugin.threat.model import ThreatModel, check_threat


@dataclass
class Certified:
    """The loss of certified training (see ``certified``).

    Attributes:
        threat: of the end of the ramp.
        bounds: of the margins f_y - f_j.
        kappa: weight of the clean loss, at the start and at the end of the ramp.
        beta: weight of ``bounds`` against IBP, likewise.
        ramp: of eps, kappa and beta.
        nrs: weight of the NRS regulariser.
        risen: how far the ramp has risen, 0 to 1.
    """

    threat: ThreatModel
    bounds: Bounds
    kappa: tuple[float, float]
    beta: tuple[float, float]
    ramp: Ramp
    nrs: float
    risen: float = field(default=1.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Move eps, kappa and beta to where they are when ``epoch`` of ``epochs`` have passed."""
        self.risen = self.ramp.at(epoch, epochs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; the clean forward pass runs in the model's own mode."""
        # Always, because DDP and running statistics need a forward pass of the wrapper.
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
        beta = 0.0 if self.bounds is ibp_margins else self._between(self.beta)
        if beta == 0:
            return ibp_margins(model, x, y, threat)
        margins = self.bounds(model, x, y, threat)
        return margins if beta == 1 else margins.lerp(ibp_margins(model, x, y, threat), 1 - beta)

    def _between(self, ends: tuple[float, float]) -> float:
        return ends[0] + (ends[1] - ends[0]) * self.risen


def certified(
    threat: ThreatModel,
    *,
    bounds: Bounds = ibp_margins,
    kappa: tuple[float, float] = (1.0, 0.0),
    beta: tuple[float, float] = (1.0, 0.0),
    ramp: Ramp | None = None,
    nrs: float = 0.0,
) -> Certified:
    """Return kappa CE(f(x), y) + (1 - kappa) CE(-m, y), m lower bounds of the margins f_y - f_j.

    m = beta m_bounds + (1 - beta) m_IBP; m_y = 0. eps, kappa and beta move together along the ramp
    (IBP: Gowal et al. 2018, section 4; CROWN-IBP: Zhang et al. 2020, equation 10; HYDRA takes
    kappa 0 throughout). A BatchNorm in training mode uses the statistics of the clean batch in f(x)
    and in m, where their gradient counts too; in evaluation mode, its running ones.

    Args:
        threat: Linf or L2; CIFAR recipes train at 1.1 times the eps they test.
        bounds: of the margins; default IBP, for which beta says nothing.
        kappa: at the start and at the end of the ramp, each in [0, 1].
        beta: likewise.
        ramp: of eps, kappa and beta; default linear over the first 60 % of the epochs.
        nrs: weight of ``nrs_loss``; .01 in its paper.

    Raises:
        TypeError: for a threat that is no threat model, or bounds that cannot be called.
        ValueError: for weights outside [0, 1], or a negative ``nrs``.
    """
    check_threat(threat)
    _check_bounds(bounds)
    for name, ends in (("kappa", kappa), ("beta", beta)):
        if len(ends) != 2 or not all(0 <= end <= 1 for end in ends):
            raise ValueError(f"{name} is {ends}; legal: two numbers (start, end) in [0, 1].")
    if not nrs >= 0:
        raise ValueError(f"nrs is {nrs}; legal: at least 0.")
    return Certified(threat, bounds, kappa, beta, ramp or Ramp(), nrs)


@dataclass
class MixTrain:
    """The loss of MixTrain (see ``mixtrain``).

    Attributes:
        threat: of the end of the ramp.
        bounds: of the margins f_y - f_j.
        points: sampled from each batch for bounds.
        probability: that a batch is bounded at all.
        ramp: of eps.
        risen: how far the ramp has risen, 0 to 1.
        past: epochs since its end.
    """

    threat: ThreatModel
    bounds: Bounds
    points: int
    probability: float
    ramp: Ramp
    risen: float = field(default=1.0, init=False)
    past: float = field(default=0.0, init=False)

    def progress(self, epoch: float, epochs: float) -> None:
        """Move eps and the weight to where they are when ``epoch`` of ``epochs`` have passed."""
        self.risen = self.ramp.at(epoch, epochs)
        self.past = max(0.0, epoch - self.ramp.end * epochs)

    @property
    def weight(self) -> float:
        """min(.1 * 2.5^floor(past / 5), 50), past in epochs since the end of the ramp."""
        return float(min(0.1 * 2.5 ** (self.past // 5), 50.0))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; which points are bounded is drawn for the whole batch."""
        with clean_pass(model, x) as logits:
            loss, y = cross_entropy(logits, y), y.long()
            if happens(self.probability):
                few, count = few_of(len(x), self.points)
                if len(few):  # of the points that are computed here
                    few = few.to(x.device)
                    threat = self.threat.with_radius(self.risen * self.threat.eps)
                    margins = self.bounds(innermost(model), x[few], y[few], threat)
                    worst = F.cross_entropy(-margins, y[few], reduction="sum") / count
                    loss = loss + self.weight * worst
        return loss


def mixtrain(
    threat: ThreatModel,
    *,
    bounds: Bounds,
    points: int = 1,
    probability: float = 0.8,
    ramp: Ramp | None = None,
) -> MixTrain:
    """Return CE(f(x), y), with some probability + w CE(worst case of a few points, y).

    The worst case has 0 for the label and upper bounds of f_j - f_y for the others (Wang et al.
    2018, MixTrain, as HYDRA's official code has it; there the bounds are symbolic intervals, which
    are ``LiRPA(threat, "same-slope").bounds``). A BatchNorm in training mode uses the statistics of
    the whole clean batch for those points too.

    Args:
        threat: norm, eps and bounds.
        bounds: of the margins f_y - f_j.
        points: sampled from each batch; HYDRA: 1 for large networks, 5 for small ones.
        probability: that a batch is bounded at all.
        ramp: of eps; default linear over the first 60 % of the epochs.

    Raises:
        TypeError: for a threat that is no threat model, or bounds that cannot be called.
        ValueError: for less than one point, or a probability outside [0, 1].
    """
    check_threat(threat)
    _check_bounds(bounds)
    if points < 1 or not 0 <= probability <= 1:
        raise ValueError(
            f"points is {points} and probability {probability}; legal: at least 1, and 0 to 1."
        )
    return MixTrain(threat, bounds, points, probability, ramp or Ramp())


def _check_bounds(bounds: object) -> None:
    if not callable(bounds):
        raise TypeError(f"bounds is {bounds!r}; give a function, such as ibp_margins.")


def nrs_loss(model: nn.Module, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return -tanh(1 + l u / gamma^2), mean over each layer's unstable ReLUs, summed over layers.

    l < 0 < u are IBP bounds of a ReLU's input, gamma the weight of the BatchNorm before it,
    detached, or 1: normalised ReLU stability, Li et al. 2022 (after Xiao et al. 2019, section 3).
    The mean keeps the weight independent of a layer's width.
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
