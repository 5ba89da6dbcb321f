"""``pgd``: projected gradient attacks, with several losses, starts and restarts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.contract import guarded
from robust_plugin.attacks.logits import check_logits
from robust_plugin.attacks.losses import (
    AttackLoss,
    dlr_loss,
    followable,
    input_gradient,
    kl_divergence,
    margin_loss,
    soft_margin,
    warn_of_gradients,
)
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.random import normal_like, uniform_like
from robust_plugin.runtime.values import is_whole
from robust_plugin.threat.model import ThreatModel, check_threat, per_point
from robust_plugin.threat.units import parse_eps

Start = Literal["uniform", "gaussian", "clean"]
Keep = Literal["last", "best"]


# TRADES and MART start their attack at x + 0.001 N(0, 1).
_GAUSSIAN_START = 1e-3
# Below this cross-entropy, float32 rounds too much of its gradient away.
_LOST = 1e-6
# All steps together have to be at least this share of eps, or the attack hardly leaves its start.
_LEAST_WAY = 0.1


@explain_wrong_calls
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on a loss, by steps of fixed size in the threat model's norm.

    x <- project(x + step_size direction(grad)), where the direction is sign(grad) for Linf and
    grad / ``||grad||_2`` for L2 (Madry et al. 2018, equation 4). If cross-entropy is so small that
    its gradient underflows, the gradient of ``losses.soft_margin`` is used, which has the same
    direction. Random starts come from torch's global generator, or within the context
    ``runtime.random.drawing`` from one generator for the whole batch.

    Attributes:
        threat: threat model, with norm Linf or L2.
        steps: number of gradient steps per start.
        step_size: length of each step in the threat model's norm, in input units.
        loss: loss to ascend: ``"ce"`` (cross-entropy), ``"kl"`` (divergence from the prediction on
            the clean input; the gradient does not use labels), ``"margin"`` (of Carlini and
            Wagner), or ``"dlr"`` (of AutoAttack, for three classes or more).
        start: start of the ascent: ``"uniform"`` in the ball, ``"gaussian"`` x + 0.001 N(0, 1), or
            ``"clean"``.
        restarts: number of independent starts; a point that is misclassified after one start is
            not attacked again.
        keep: which iterate of a start to return: the ``"last"`` one, or the ``"best"`` one, which
            is a misclassified one if there is any, and the one of highest loss otherwise.
    """

    threat: ThreatModel
    steps: int
    step_size: float
    loss: AttackLoss
    start: Start
    restarts: int
    keep: Keep

    @property
    def name(self) -> str:
        """Name of the attack in reports: steps, restarts and loss, as ``"PGD-20x5 margin"``."""
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"PGD-{self.steps}{restarts}" + (f" {self.loss}" if self.loss != "ce" else "")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the attacked inputs, shape [B, ...]; errors are those of a ``guarded`` attack.

        Args:
            model: network; the attack runs in evaluation mode.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
        """
        return guarded(self._run, self.threat)(model, x, y)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        clean = None
        if self.loss == "kl":
            with torch.no_grad():
                clean = check_logits(model(x), y)
        if self.restarts == 1 and self.keep == "last":
            return self._ascend(model, x, y, clean)[0]
        result, best = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        left = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            reference = None if clean is None else clean[left]
            x_adv, value = self._ascend(model, x[left], y[left], reference, measured=True)
            better = value > best[left]
            result[left[better]], best[left[better]] = x_adv[better], value[better]
            left = left[value < torch.inf]
            if len(left) == 0:
                break
        return result

    def _ascend(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        clean: Tensor | None,
        *,
        measured: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ascend once, from one start, and return an iterate of each point with its value.

        Args:
            model: network.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
            clean: logits of the clean inputs for the loss "kl", else None.
            measured: whether to compute values and to respect ``self.keep``; otherwise the last
                iterates are returned, with values of -inf.

        Returns:
            tuple: iterates, shape [B, ...], and their values, shape [B]: the loss, or infinity for
            a misclassified iterate.
        """
        x_adv, underflows = self._first(x), False
        lost = torch.zeros((), dtype=torch.bool, device=x.device)
        kept, best = x_adv, torch.full((len(x),), -torch.inf, device=x.device)
        for step in range(self.steps):
            x_adv.requires_grad_(True)
            logits = model(x_adv)
            if step == 0:
                check_logits(logits, y)
            losses = self._losses(logits, y, clean)
            if step == 0 and self.loss == "ce":  # later steps raise it
                underflows = bool((losses <= _LOST).any())
            if underflows:
                losses = _rescued(losses, logits, y)
            grad = input_gradient(losses.sum(), x_adv)
            lost |= ~grad.isfinite().all()
            grad = grad.nan_to_num() if self.threat.norm == "Linf" else followable(grad)
            x_adv = x_adv.detach()
            if measured and self.keep == "best":
                kept, best = _better(kept, best, x_adv, _rank(logits, y, losses))
            x_adv = self.threat.project(x_adv + self.step_size * self.threat.direction(grad), x)
        if bool(lost):  # asked once per start, because the answer waits for the GPU
            warn_of_gradients()
        if not measured:
            return x_adv, best
        with torch.no_grad():
            logits = model(x_adv)
            losses = self._losses(logits, y, clean)
            last = _rank(logits, y, _rescued(losses, logits, y) if underflows else losses)
        if self.keep == "last":
            return x_adv, last
        return _better(kept, best, x_adv, last)

    def _first(self, x: Tensor) -> Tensor:
        """Return the points that the ascent starts at, with the shape of ``x``, in ball and box."""
        if self.start == "clean":
            return x.clone()
        if self.start == "gaussian":
            return self.threat.project(x + _GAUSSIAN_START * normal_like(x), x)
        if self.threat.norm == "Linf":
            noise = uniform_like(x, -self.threat.eps, self.threat.eps)
        else:
            # A uniform point of a d-ball has radius eps u^(1/d).
            noise = normal_like(x)
            radius = self.threat.eps * uniform_like(x.new_empty(len(x))) ** (1 / x[0].numel())
            noise = noise * per_point(radius / self.threat.norms(noise), x)
        return self.threat.project(x + noise, x)

    def _losses(self, logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
        """Return the loss of each point, shape [B].

        Args:
            logits: logits of the iterates, shape [B, classes].
            y: labels, shape [B].
            clean: logits of the clean inputs for the loss "kl", else None.
        """
        if clean is not None:
            return kl_divergence(clean, logits)
        if self.loss == "margin":
            return margin_loss(logits, y)
        if self.loss == "dlr":
            if logits.shape[1] < 3:
                raise ValueError("loss 'dlr' needs at least three classes; take 'margin'.")
            return dlr_loss(logits, y)
        return F.cross_entropy(logits, y, reduction="none")


def _rescued(losses: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Return the losses, with the soft margin for points whose cross-entropy underflows.

    The soft margin rises with cross-entropy and is negative for such points, so that the values of
    all points keep the order of cross-entropy.

    Args:
        losses: cross-entropy of each point, shape [B].
        logits: logits of the iterates, shape [B, classes].
        y: labels, shape [B].
    """
    return torch.where(losses > _LOST, losses, soft_margin(logits, y))


def _rank(logits: Tensor, y: Tensor, losses: Tensor) -> Tensor:
    """Return the value of each iterate, shape [B]: its loss, or infinity if misclassified."""
    return losses.detach().masked_fill(logits.argmax(1) != y, torch.inf).float()


def _better(kept: Tensor, best: Tensor, x_adv: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each point, the iterate of higher value, and that value.

    Args:
        kept: one iterate of each point, shape [B, ...].
        best: values of ``kept``, shape [B].
        x_adv: another iterate of each point, shape [B, ...].
        value: values of ``x_adv``, shape [B].
    """
    take = value > best
    return torch.where(per_point(take, x_adv), x_adv, kept), torch.where(take, value, best)


@explain_wrong_calls
def pgd(
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | str | None = None,
    loss: AttackLoss = "ce",
    start: Start = "uniform",
    restarts: int = 1,
    keep: Keep = "last",
) -> PGD:
    """Return a projected gradient attack (see ``PGD``).

    Args:
        threat: threat model, with norm Linf or L2.
        steps: number of gradient steps per start, at least 1.
        step_size: length of each step, in input units: a number, or a fraction as a string.
            Default: 2.5 eps / steps, so that the steps together can cross the ball from side to
            side (Madry et al. 2018).
        loss: loss to ascend: ``"ce"`` (cross-entropy), ``"kl"`` (divergence from the clean
            prediction), ``"margin"`` or ``"dlr"``.
        start: start of the ascent: ``"uniform"`` in the ball, ``"gaussian"`` near the clean input,
            or ``"clean"``.
        restarts: number of independent starts, at least 1.
        keep: which iterate of a start to return, the ``"last"`` or the ``"best"``.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for a value that is not legal; the message names it and what is legal.

    >>> pgd(ThreatModel("Linf", eps="8/255"), steps=10).step_size * 255
    2.0
    """
    for name, value, legal in (
        ("loss", loss, get_args(AttackLoss)),
        ("start", start, get_args(Start)),
        ("keep", keep, get_args(Keep)),
    ):
        if value not in legal:
            raise ValueError(f"{name} is {value!r}; legal: {', '.join(legal)}.")
    check_threat(threat)
    for name, count in (("steps", steps), ("restarts", restarts)):
        if not (is_whole(count) and count >= 1):
            raise ValueError(f"{name} is {count!r}; legal: at least 1, whole.")
    if threat.norm == "L1":
        raise ValueError(
            "pgd moves in Linf and L2; for L1 take AutoAttack (four classes or more), or "
            "torchattack('EADL1', threat)."
        )
    if loss == "kl" and start == "clean":
        raise ValueError("loss 'kl' has no gradient at the clean point; take another start.")
    size = 2.5 * threat.eps / steps
    if step_size is not None:
        size = parse_eps(step_size, name="step_size")
        threat.check_width("step_size", step_size, size)
        if steps * size < _LEAST_WAY * threat.eps:
            raise ValueError(
                f"step_size is {step_size!r}: {steps} steps of it lead {steps * size:g} far, and "
                f"eps is {threat.eps:g}, so that the attack would hardly leave its start. Legal: "
                f"at least {_LEAST_WAY * threat.eps / steps:g}; the default is "
                f"{2.5 * threat.eps / steps:g}."
            )
    return PGD(threat, steps, size, loss, start, restarts, keep)
