"""Objectives that train on adversarial inputs: adversarial training, TRADES, MART, free training.

An objective is ``objective(model, x, y) -> scalar``. The same robust objective serves pre-training,
pruning and fine-tuning (Sehwag et al. 2019, section 3). Attacks run in evaluation mode. The forward
passes whose outputs enter the loss run in the model's present mode, usually training mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.contract import Attack, SuspectNetwork, check_attack
from robust_plugin.attacks.logits import check_labels, check_logits, outputs_of
from robust_plugin.attacks.losses import kl_divergence
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.objectives.adversarial_inputs import attacked
from robust_plugin.runtime.calls import explain_wrong_calls, user_level
from robust_plugin.runtime.values import check_call, is_number, is_whole
from robust_plugin.threat.model import ThreatModel, check_threat, per_point
from robust_plugin.threat.units import parse_eps

Batch = TypeVar("Batch")


class Objective(Protocol):
    """A loss that training minimises."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar that ``backward`` can be called on.

        Args:
            model: network to train; its mode (training or evaluation) is not changed.
            x: inputs, shape [B, ...].
            y: labels, shape [B].
        """


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return CE(logits, y), the mean over the points; the logits must be finite.

    Args:
        logits: logits, shape [B, classes].
        y: labels, shape [B].

    Raises:
        TypeError: if the logits are not a tensor.
        ValueError: for NaN, infinity or another shape, or labels outside 0..classes-1, also for the
            label -100, whose points torch's cross-entropy leaves out.
    """
    _warn_of_probabilities(logits)
    return F.cross_entropy(check_logits(logits, y), y.long())


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return what ``cross_entropy`` returns, but allow NaN and infinity in the logits.

    With mixed precision, a GradScaler skips the steps whose gradients are not finite.
    """
    _warn_of_probabilities(logits)
    return F.cross_entropy(check_labels(logits, y), y.long())


def _warn_of_probabilities(logits: Tensor) -> None:
    """Warn if the network ends in a softmax or a sigmoid: the losses apply a softmax themselves.

    The name of the last operation says so, so that no value is read.
    """
    last = type(getattr(logits, "grad_fn", None)).__name__
    if last in ("SoftmaxBackward0", "SigmoidBackward0"):
        warnings.warn(
            f"the model ends in a {last.removesuffix('Backward0').lower()}, and the loss applies "
            "a softmax to its outputs again, which makes gradients vanish; return logits.",
            SuspectNetwork,
            stacklevel=user_level(),
        )


@explain_wrong_calls
def benign(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return CE(f(x), y), the loss of standard training without an adversary.

    For logits of shape [B, classes, ...], as of a segmentation network, this is torch's
    cross-entropy, which leaves out labels of -100.

    Args:
        model: network to train.
        x: inputs, shape [B, ...].
        y: labels, shape [B], or probabilities, shape [B, classes], as after mixup; for logits of
            shape [B, classes, ...], labels of shape [B, ...].

    Raises:
        TypeError: if the model does not return a tensor.
        ValueError: for labels outside 0..classes-1, or logits or probabilities of another shape.
    """
    check_call(model, x, y)
    logits = outputs_of(model, x)
    if isinstance(logits, Tensor) and logits.dim() > 2:  # one label per pixel, some to be ignored
        return F.cross_entropy(logits, y)
    if not (y.is_floating_point() and y.dim() == 2):
        return _cross_entropy(logits, y)
    check_labels(logits, y.new_zeros(len(y), dtype=torch.long))
    if logits.shape != y.shape:
        raise ValueError(
            f"probabilities have shape {tuple(y.shape)} and logits {tuple(logits.shape)}; legal: "
            "both [B, classes]."
        )
    return F.cross_entropy(logits, y)


@explain_wrong_calls
def adversarial(attack: Attack) -> Objective:
    """Return the objective CE(f(x'), y), where ``attack`` returns x' (Madry et al. 2018).

    Args:
        attack: attack such as ``pgd(threat, steps=10)``. Wrap an attack that is not of this package
            in ``guarded``.

    Raises:
        TypeError: if ``attack`` cannot be called.
    """
    if not callable(attack):
        raise TypeError(f"attack is {attack!r}; give a callable, such as pgd(threat).")
    check_attack(attack)

    @explain_wrong_calls
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        return _cross_entropy(outputs_of(model, attacked(attack, model, x, y)), y)

    return objective


@explain_wrong_calls
def trades(
    threat: ThreatModel,
    *,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | str | None = None,
) -> Objective:
    """Return the objective CE(f(x), y) + beta KL(f(x) || f(x')) of TRADES.

    f is the network. An attack maximises the KL term to find x' (Zhang et al. 2019, equation 5). It
    starts at x + 0.001 N(0, 1) and runs in evaluation mode. Gradients also flow through f(x) in the
    KL term. With 10 steps, the objective takes 13 forward passes: one of x for the KL of the
    attack, ten in the attack, and two in the loss. The official code takes 24, because its attack
    computes f(x) again at every step.

    Args:
        threat: threat model of the attack, with norm Linf or L2.
        beta: weight of the KL term, at least 0; 6 in HYDRA and HARP.
        steps: number of steps of the attack.
        step_size: length of each step of the attack, in input units; default 2.5 eps / steps.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for a negative beta, or an illegal norm, number of steps or step size.

    >>> model = nn.Linear(4, 3)
    >>> objective = trades(ThreatModel("Linf", eps="8/255"), beta=6, steps=2)
    >>> loss = objective(model, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    >>> loss.shape, loss.requires_grad
    (torch.Size([]), True)
    """
    check_beta(beta)
    attack = pgd(threat, steps=steps, step_size=step_size, loss="kl", start="gaussian")

    @explain_wrong_calls
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        x_adv = attacked(attack, model, x, y)
        clean, robust = outputs_of(model, x), model(x_adv)
        loss: Tensor = _cross_entropy(clean, y) + beta * kl_divergence(clean, robust).mean()
        return loss

    return objective


@explain_wrong_calls
def mart(
    threat: ThreatModel,
    *,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float | str | None = None,
) -> Objective:
    """Return the objective BCE(f(x'), y) + beta mean[KL(p || p') (1 - p_y)] of MART.

    Wang et al. 2020, equation 10. BCE(f(x'), y) = CE(f(x'), y) - log(1.0001 - max_{j != y} p'_j),
    p = softmax(f(x)) and p' = softmax(f(x')). An attack maximises CE(f(x'), y) to find x'; it
    starts at x + 0.001 N(0, 1) and runs in evaluation mode.

    Args:
        threat: threat model of the attack, with norm Linf or L2.
        beta: weight of the KL term, at least 0; 5 in HARP.
        steps: number of steps of the attack.
        step_size: length of each step of the attack, in input units; default 2.5 eps / steps.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for a negative beta, or an illegal norm, number of steps or step size.
    """
    check_beta(beta)
    attack = pgd(threat, steps=steps, step_size=step_size, start="gaussian")

    @explain_wrong_calls
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        x_adv = attacked(attack, model, x, y)
        clean, robust = outputs_of(model, x), model(x_adv)
        robust_loss, y = _cross_entropy(robust, y), y.long()
        wrong = robust.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        boosted = robust_loss - torch.log(1.0001 - wrong).mean()
        true = clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        loss: Tensor = boosted + beta * (kl_divergence(clean, robust) * (1 - true)).mean()
        return loss

    return objective


def check_beta(beta: float) -> None:
    """Raise a ValueError unless beta, the weight of the KL term of a loss, is at least 0."""
    if not (is_number(beta) and beta >= 0):
        raise ValueError(f"beta is {beta!r}; legal: at least 0.")


@explain_wrong_calls
class Free:
    """The objective CE(f(x + d), y) of free adversarial training (Shafahi et al. 2019).

    The perturbation d is kept from batch to batch. Each call first moves d along the input gradient
    of the last call, d <- project(d + step_size direction(grad)), so that weights and perturbation
    learn from the same backward pass. Train on each batch m times in a row, as the function
    ``replay`` of this module yields them, and divide the number of epochs by m.

    Args:
        threat: threat model of the perturbation.
        step_size: length of each step of d, in input units; default eps, as in the paper.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for an illegal step size.
    """

    def __init__(self, threat: ThreatModel, *, step_size: float | str | None = None) -> None:
        self.threat = check_threat(threat)
        self.step_size = threat.eps if step_size is None else parse_eps(step_size, name="step_size")
        threat.check_width("step_size", step_size, self.step_size)
        self._delta: Tensor | None = None
        self._leaf: Tensor | None = None

    def __repr__(self) -> str:
        """Return the call that makes this objective."""
        return f"Free({self.threat!r}, step_size={self.step_size!r})"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; its backward pass also computes the gradient for the next step of d.

        Args:
            model: network to train.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
        """
        check_call(model, x, y)
        self.threat.check_inputs(x)
        delta = self._next_delta(x)
        self._leaf = delta.requires_grad_(True)
        x_adv = (x + delta).clamp(self.threat.low, self.threat.high)
        return _cross_entropy(outputs_of(model, x_adv), y)

    def _next_delta(self, x: Tensor) -> Tensor:
        """Move the perturbation by one step, and return it with the shape of ``x``."""
        if self._delta is None or self._delta.shape[1:] != x.shape[1:]:
            self._delta, self._leaf = torch.zeros_like(x), None
        if self._leaf is not None and self._leaf.grad is not None:
            # The gradients of a step that a GradScaler skips are infinite.
            grad = self._leaf.grad.nan_to_num(0.0, 0.0, 0.0)
            if self.threat.norm == "Linf":
                move = grad.sign()
            else:  # not threat.direction: a gradient of length below 1e-12 is no full step here
                move = grad * per_point(1 / self.threat.norms(grad).clamp(min=1e-12), grad)
            self._leaf = None
            moved = self._delta[: len(grad)] + self.step_size * move
            self._delta[: len(grad)] = self._clipped(moved)
        if len(self._delta) < len(x):
            more = torch.zeros_like(x[: len(x) - len(self._delta)])
            self._delta = torch.cat([self._delta, more])
        return self._delta[: len(x)].clone()

    def _clipped(self, delta: Tensor) -> Tensor:
        """Return ``delta`` in the ball: clamped for Linf, scaled down to norm eps for L2 and L1."""
        if self.threat.norm == "Linf":
            return delta.clamp(-self.threat.eps, self.threat.eps)
        return delta * per_point(
            self.threat.eps / self.threat.norms(delta).clamp(1e-12), delta
        ).clamp(max=1)


@explain_wrong_calls
def replay(batches: Iterable[Batch], times: int) -> Iterator[Batch]:
    """Yield every batch ``times`` times in a row, for free adversarial training (see ``Free``).

    Raises:
        TypeError: if ``batches`` cannot be iterated.
        ValueError: unless ``times`` is a whole number of at least 1.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}; give the DataLoader, or a list.")
    if not (is_whole(times) and times >= 1):
        raise ValueError(f"times is {times!r}; legal: at least 1, whole.")
    return (batch for batch in batches for _ in range(times))
