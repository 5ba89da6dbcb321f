"""Training objectives: ``objective(model, x, y) -> scalar``, the same in every phase.

That the same robust objective serves pre-training, pruning and fine-tuning is the first insight
of the papers (Sehwag 2019, section 3). The clean and the adversarial pass of a loss run in the
model's own mode; attacks run in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.logits import check_labels, check_logits
from robust_plugin.attacks.losses import kl_divergence
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.threat.model import ThreatModel, per_point
from robust_plugin.threat.units import parse_eps

Batch = TypeVar("Batch")


class Objective(Protocol):
    """A loss to minimise."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return a scalar with a graph; inputs [B, ...], labels [B]."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return CE(logits, y), mean over the points; the logits must be finite.

    Raises:
        TypeError, ValueError: for what ``check_logits`` refuses; of labels, torch would leave out
            points of -100.
    """
    return F.cross_entropy(check_logits(logits, y), y.long())


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """CE(logits, y) of logits that may overflow, as under a GradScaler, which skips the step."""
    return F.cross_entropy(check_labels(logits, y), y.long())


def benign(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """CE(f(x), y): no adversary; y may hold probabilities [B, classes], as after mixup.

    Of logits [B, classes, ...], as of a segmentation, torch's own cross-entropy, which leaves out
    labels of -100.

    Raises:
        TypeError: if the model returns no tensor.
        ValueError: for labels outside 0..classes-1, or logits or probabilities of another shape.
    """
    logits = model(x)
    if isinstance(logits, Tensor) and logits.dim() > 2:  # one label a pixel, some to be ignored
        return F.cross_entropy(logits, y)
    if not (y.is_floating_point() and y.dim() == 2):
        return _cross_entropy(logits, y)
    check_labels(logits, torch.zeros(len(y), dtype=torch.long))
    if logits.shape != y.shape:
        raise ValueError(
            f"probabilities have shape {tuple(y.shape)} and logits {tuple(logits.shape)}; legal: "
            "both [B, classes]."
        )
    return F.cross_entropy(logits, y)


def adversarial(attack: Attack) -> Objective:
    """CE(f(x'), y) with x' from an attack (Madry et al. 2018).

    Args:
        attack: e.g. ``pgd(threat, steps=10)``; one that is not ours, wrapped in ``guarded``.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(attack):
        raise TypeError(f"attack is {attack!r}; give a callable, such as pgd(threat).")

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return _cross_entropy(model(attack(unwrapped(model), x, y)), y)

    return objective


def trades(
    threat: ThreatModel,
    *,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | str | None = None,
) -> Objective:
    """CE(f(x), y) + beta KL(f(x) || f(x')), x' maximising that KL (Zhang et al. 2019, eq. 5).

    The attack starts at x + .001 N(0, 1) and runs in evaluation mode; the clean branch is not
    detached. 13 forward passes at 10 steps: one for the attack's reference, ten of the attack,
    two of the loss. (The official code needs 24: it recomputes the reference at every step.)

    Args:
        threat: norm, eps and bounds.
        beta: weight of robustness; 6 in HYDRA and HARP.
        steps: of the attack.
        step_size: in input units; default 2.5 eps / steps.

    Raises:
        ValueError: for a negative beta, or what ``pgd`` refuses.

    >>> model = nn.Linear(4, 3)
    >>> objective = trades(ThreatModel("Linf", eps="8/255"), beta=6, steps=2)
    >>> loss = objective(model, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    >>> loss.shape, loss.requires_grad
    (torch.Size([]), True)
    """
    check_beta(beta)
    attack = pgd(threat, steps=steps, step_size=step_size, loss="kl", start="gaussian")

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = attack(unwrapped(model), x, y)
        clean, robust = model(x), model(x_adv)
        loss: Tensor = _cross_entropy(clean, y) + beta * kl_divergence(clean, robust).mean()
        return loss

    return objective


def mart(
    threat: ThreatModel,
    *,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float | str | None = None,
) -> Objective:
    """BCE(f(x'), y) + beta mean[KL(p || p') (1 - p_y)] (Wang et al. 2020, equation 10).

    BCE(f', y) = CE(f', y) - log(1.0001 - max_{j != y} p'_j); x' maximises CE from
    x + .001 N(0, 1).

    Args:
        threat: norm, eps and bounds.
        beta: weight of the misclassification-aware term; 5 in HARP.
        steps: of the attack.
        step_size: in input units; default 2.5 eps / steps.

    Raises:
        ValueError: for a negative beta, or what ``pgd`` refuses.
    """
    check_beta(beta)
    attack = pgd(threat, steps=steps, step_size=step_size, start="gaussian")

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = attack(unwrapped(model), x, y)
        clean, robust = model(x), model(x_adv)
        robust_loss, y = _cross_entropy(robust, y), y.long()
        wrong = robust.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        boosted = robust_loss - torch.log(1.0001 - wrong).mean()
        true = clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        loss: Tensor = boosted + beta * (kl_divergence(clean, robust) * (1 - true)).mean()
        return loss

    return objective


def check_beta(beta: float) -> None:
    """Raise a ValueError unless the weight of robustness is 0 or more."""
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; legal: at least 0.")


class Free:
    """CE(f(x + d), y) with one perturbation d carried from batch to batch (Shafahi et al. 2019).

    Each call first moves d along the input gradient of the last one, d <- project(d + step
    direction(grad)), so that weights and perturbation learn from the same backward pass. Show
    each batch several times (``replay``) and divide the epochs by as much.

    Args:
        threat: norm, eps and bounds.
        step_size: in input units; default eps, as in the paper.
    """

    def __init__(self, threat: ThreatModel, *, step_size: float | str | None = None) -> None:
        self.threat = threat
        self.step_size = threat.eps if step_size is None else parse_eps(step_size, name="step_size")
        self._delta: Tensor | None = None
        self._leaf: Tensor | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; its backward pass also reaches the perturbation."""
        self.threat.check_inputs(x)
        delta = self._moved(x)
        self._leaf = delta.requires_grad_(True)
        x_adv = (x + delta).clamp(self.threat.low, self.threat.high)
        return _cross_entropy(model(x_adv), y)

    def _moved(self, x: Tensor) -> Tensor:
        if self._delta is None or self._delta.shape[1:] != x.shape[1:]:
            self._delta, self._leaf = torch.zeros_like(x), None
        if self._leaf is not None and self._leaf.grad is not None:
            # A step that a GradScaler skips has infinite gradients.
            grad = self._leaf.grad.nan_to_num(0.0, 0.0, 0.0)
            if self.threat.norm == "Linf":
                move = grad.sign()
            else:
                move = grad * per_point(1 / self.threat.norms(grad).clamp(min=1e-12), grad)
            self._leaf = None
            moved = self._delta[: len(grad)] + self.step_size * move
            self._delta[: len(grad)] = self._clipped(moved)
        if len(self._delta) < len(x):
            more = torch.zeros_like(x[: len(x) - len(self._delta)])
            self._delta = torch.cat([self._delta, more])
        return self._delta[: len(x)].clone()

    def _clipped(self, delta: Tensor) -> Tensor:
        if self.threat.norm == "Linf":
            return delta.clamp(-self.threat.eps, self.threat.eps)
        return delta * per_point(
            self.threat.eps / self.threat.norms(delta).clamp(1e-12), delta
        ).clamp(max=1)


def replay(batches: Iterable[Batch], times: int) -> Iterator[Batch]:
    """Yield every batch ``times`` times in a row, for free adversarial training."""
    if times < 1:
        raise ValueError(f"times is {times}; legal: at least 1.")
    for batch in batches:
        for _ in range(times):
            yield batch
