"""Auto-PGD: gradient ascent whose step sizes follow from how the loss went.

Croce and Hein 2020, algorithm 1. What differs from the authors' code is the work, not the run:
points that are fooled leave it at once, and nothing is computed that no step reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugin.attacks.losses import finite, input_gradient
from robust_plugin.attacks.survivors import Run, Standing
from robust_plugin.threat.model import per_point

# Of the steps: until the first check, by how much each following window is shorter, and the least.
_FIRST, _SHORTER, _LEAST = 0.22, 0.03, 0.06
# The share of a step that is new; the rest goes on as the step before it.
_MOMENTUM = 0.75


@dataclass
class _Climb(Run):
    """Where a run is.

    Attributes:
        x_adv: where the run is.
        before: where it was a step ago.
        gradient: of the loss at ``x_adv``.
        best: the point of highest loss.
        best_gradient: there.
        best_loss: there.
        size: of the steps.
        history: the loss after each step; a zero comes first, as in the authors' code.
        halved: whether the last check halved the step.
        checked: the highest loss at the last check.
    """

    x_adv: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    size: Tensor
    history: Tensor
    halved: Tensor
    checked: Tensor


def apgd(
    points: Standing, loss: Callable[[Tensor, Tensor], Tensor], *, steps: int, rho: float
) -> None:
    """Run once over the points that stand, in Linf or L2, from a random start.

    Args:
        points: of one batch, inputs in [0, 1].
        loss: (logits, rows) -> what to ascend, shape [R].
        steps: gradient steps.
        rho: the share of a window's steps that have to raise the loss, or the step is halved.

    Raises:
        AllFooled: once no point stands.
    """
    rows = points.rest()
    x = points.x[rows]
    x_adv = _start(points, x)
    history = x.new_zeros(len(rows), steps + 1)
    losses = history[:, 0]
    size = torch.full_like(losses, 2 * points.threat.eps)
    run = _Climb(
        rows, x, x_adv, x_adv, x_adv, x_adv, x_adv, losses, size, history, losses == 0, losses
    )
    run.best_loss = run.checked = _look(points, run, loss)
    run.best, run.best_gradient = run.x_adv.clone(), run.gradient.clone()
    window = check_in = max(int(_FIRST * steps), 1)
    for step in range(steps):
        with torch.no_grad():
            run.x_adv, run.before = _moved(points, run, first=step == 0), run.x_adv
        found = _look(points, run, loss)
        run.history[:, step + 1] = found
        better = (found > run.best_loss).nonzero().flatten()
        run.best[better], run.best_gradient[better] = run.x_adv[better], run.gradient[better]
        run.best_loss = torch.maximum(run.best_loss, found)
        check_in -= 1
        if check_in == 0:
            _check(run, run.history[:, step + 1 - window : step + 2], rho)
            window = check_in = max(
                window - max(int(_SHORTER * steps), 1), max(int(_LEAST * steps), 1)
            )


def _start(points: Standing, x: Tensor) -> Tensor:
    """A random direction, as far as the ball goes."""
    noise = 2 * torch.rand(x.shape) - 1 if points.threat.norm == "Linf" else torch.randn(x.shape)
    noise = noise.to(x)
    size = points.threat.norms(noise) + 1e-12
    return (x + points.threat.eps * noise / per_point(size, x)).clamp_(0, 1)


def _look(points: Standing, run: _Climb, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the loss where the run is, its gradient in ``run``; what is fooled leaves."""
    x_adv = run.x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = points.model(x_adv)
        losses = loss(logits, run.rows)
        run.gradient = finite(input_gradient(losses.sum(), x_adv))
    losses = losses.detach()
    standing = points.keep(run.rows, run.x_adv, logits.detach())
    run.only(standing)
    return losses if standing is None else losses[standing]


def _moved(points: Standing, run: _Climb, *, first: bool) -> Tensor:
    """z = P(x_k + size d); x_{k+1} = P(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1})), equation 2."""
    share = 1.0 if first else _MOMENTUM
    if points.threat.norm == "Linf":
        direction = run.gradient.sign()
    else:
        direction = run.gradient / per_point(points.threat.norms(run.gradient) + 1e-12, run.x)
    moved = direction.mul_(per_point(run.size, run.x)).add_(run.x_adv)
    moved = _in_ball(points, run, moved)
    moved.sub_(run.x_adv).mul_(share).add_(run.x_adv)
    moved.add_(run.x_adv, alpha=1 - share).sub_(run.before, alpha=1 - share)
    return _in_ball(points, run, moved)


def _in_ball(points: Standing, run: _Climb, moved: Tensor) -> Tensor:
    """Project in place; unlike ``ThreatModel.project``, without a temporary of the points' size."""
    eps = points.threat.eps
    if points.threat.norm == "Linf":
        moved.sub_(run.x).clamp_(-eps, eps)
    else:
        moved.sub_(run.x)
        moved.mul_(per_point((eps / (points.threat.norms(moved) + 1e-12)).clamp(max=1), moved))
    return moved.add_(run.x).clamp_(0, 1)


def _check(run: _Climb, window: Tensor, rho: float) -> None:
    """Halve the step, and go on from the best point, where the loss rose too rarely or not at all.

    Conditions 1 and 2 of section 3.2.
    """
    rises = (window[:, 1:] > window[:, :-1]).sum(1)
    rarely = rises <= (window.shape[1] - 1) * rho
    not_at_all = ~run.halved & (run.checked >= run.best_loss)
    run.halved = rarely | not_at_all
    run.checked = run.best_loss
    where = run.halved.nonzero().flatten()
    run.size[where] /= 2
    run.x_adv[where], run.gradient[where] = run.best[where], run.best_gradient[where]
