"""Auto-PGD (APGD): gradient ascent that halves its step size when the loss stops rising.

Croce and Hein 2020, algorithm 1. The iterates are those of the authors' code, but the code here
computes less: a point is dropped as soon as it is fooled (an iterate in its ball is misclassified),
and values that no step reads are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugin.attacks.losses import finite, input_gradient
from robust_plugin.attacks.survivors import AttackRun, Survivors
from robust_plugin.threat.model import per_point

# Lengths of the windows between two checks of the step size, as shares of all steps: the first
# window, by how much each following one is shorter, and the shortest.
_FIRST, _SHORTER, _LEAST = 0.22, 0.03, 0.06
# Share of the new step in each move; the rest is the previous move.
_MOMENTUM = 0.75


@dataclass
class _ApgdRun(AttackRun):
    """What APGD stores about the R points of a batch that it attacks and has not fooled yet.

    Attributes:
        x_adv: current iterates, shape [R, ...].
        before: iterates one step earlier, shape [R, ...].
        gradient: gradient of the loss at ``x_adv``, shape [R, ...].
        best: iterates of highest loss so far, shape [R, ...].
        best_gradient: gradient of the loss at ``best``, shape [R, ...].
        best_loss: loss at ``best``, shape [R].
        size: step size of each point, shape [R].
        history: loss of each point after each step, shape [R, steps + 1]; column 0 is zero, as in
            the authors' code.
        halved: whether the last check of the step size (``_check``) halved it, shape [R].
        checked: value of ``best_loss`` at the last check of the step size, shape [R].
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
    points: Survivors, loss: Callable[[Tensor, Tensor], Tensor], *, steps: int, rho: float
) -> None:
    """Run APGD once, in Linf or L2, from random starts, on the points that are not fooled yet.

    Args:
        points: points of one batch, with inputs in [0, 1]; stores the adversarial inputs found.
        loss: function of the logits of R points, shape [R, classes], and of the indices of these
            points in the batch, shape [R]; returns the loss to ascend of each point, shape [R].
        steps: number of gradient steps.
        rho: the step size of a point is halved unless more than this share of the steps since the
            last check of the step size has raised the loss.

    Raises:
        AllFooled: as soon as all points of the batch are fooled.
    """
    rows = points.rest()
    x = points.x[rows]
    x_adv = _start(points, x)
    history = x.new_zeros(len(rows), steps + 1)
    losses = history[:, 0]
    size = torch.full_like(losses, 2 * points.threat.eps)
    run = _ApgdRun(
        rows, x, x_adv, x_adv, x_adv, x_adv, x_adv, losses, size, history, losses == 0, losses
    )
    run.best_loss = run.checked = _losses_at(points, run, loss)
    run.best, run.best_gradient = run.x_adv.clone(), run.gradient.clone()
    window = check_in = max(int(_FIRST * steps), 1)
    for step in range(steps):
        with torch.no_grad():
            run.x_adv, run.before = _next(points, run, first=step == 0), run.x_adv
        found = _losses_at(points, run, loss)
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


def _start(points: Survivors, x: Tensor) -> Tensor:
    """Return one random start per clean input in ``x``, at distance eps, clamped to [0, 1]."""
    noise = 2 * torch.rand(x.shape) - 1 if points.threat.norm == "Linf" else torch.randn(x.shape)
    noise = noise.to(x)
    size = points.threat.norms(noise) + 1e-12
    return (x + points.threat.eps * noise / per_point(size, x)).clamp_(0, 1)


def _losses_at(
    points: Survivors, run: _ApgdRun, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Compute the loss of each point at its current iterate, and drop the points that are fooled.

    Args:
        points: points of the batch; stores the adversarial inputs found.
        run: state of the attack; it gets the gradients, and fooled points are removed from it.
        loss: as for ``apgd``.

    Returns:
        Tensor: losses of the points that are left in ``run``, one per point.
    """
    x_adv = run.x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = points.model(x_adv)
        losses = loss(logits, run.rows)
        run.gradient = finite(input_gradient(losses.sum(), x_adv))
    losses = losses.detach()
    left = points.keep(run.rows, run.x_adv, logits.detach())
    run.keep_only(left)
    return losses if left is None else losses[left]


def _next(points: Survivors, run: _ApgdRun, *, first: bool) -> Tensor:
    """Return the next iterates x_{k+1}, shape [R, ...], by equation 2.

    z = P(x_k + size d), x_{k+1} = P(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1})), where d is the
    direction of steepest ascent, P the projection, and a = 0.75, or 1 at the first step. d and P
    are written out, not taken from ``ThreatModel``, to round as the authors' code does.

    Args:
        points: points of the batch, for the threat model.
        run: state of the attack.
        first: whether this is the first step.
    """
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


def _in_ball(points: Survivors, run: _ApgdRun, moved: Tensor) -> Tensor:
    """Project ``moved`` [R, ...] onto the balls around ``run.x``, then [0, 1]; return it.

    The projection works in place, to save memory.
    """
    eps = points.threat.eps
    if points.threat.norm == "Linf":
        moved.sub_(run.x).clamp_(-eps, eps)
    else:
        moved.sub_(run.x)
        moved.mul_(per_point((eps / (points.threat.norms(moved) + 1e-12)).clamp(max=1), moved))
    return moved.add_(run.x).clamp_(0, 1)


def _check(run: _ApgdRun, window: Tensor, rho: float) -> None:
    """Halve the step size of points whose loss rose too rarely or not at all since the last check.

    Such points continue from their best iterate. Conditions 1 and 2 of section 3.2.

    Args:
        run: state of the attack, changed in place.
        window: losses before and after each step since the last check, shape [R, steps + 1].
        rho: the loss must rise in more than this share of those steps.
    """
    rises = (window[:, 1:] > window[:, :-1]).sum(1)
    rarely = rises <= (window.shape[1] - 1) * rho
    not_at_all = ~run.halved & (run.checked >= run.best_loss)
    run.halved = rarely | not_at_all
    run.checked = run.best_loss
    where = run.halved.nonzero().flatten()
    run.size[where] /= 2
    run.x_adv[where], run.gradient[where] = run.best[where], run.best_gradient[where]
