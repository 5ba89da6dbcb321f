"""FAB: search for the nearest decision boundary, by projections onto its linearisations.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", algorithm 1. The attack minimises a distance, so that one search gives the result of every
radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_plugin.attacks.losses import finite, input_gradient
from robust_plugin.attacks.survivors import AttackRun, Survivors
from robust_plugin.threat.model import per_point


@dataclass(frozen=True)
class FabSettings:
    """Constants of FAB; the defaults are those of AutoAttack.

    Attributes:
        steps: number of steps of one search.
        overshoot: eta, the factor on the way to the linearised boundary; above 1, a step goes
            beyond the boundary.
        backward: beta; a misclassified iterate is moved back towards the clean point, to this share
            of its distance.
        bias: alpha_max, in [0, 1]: each iterate is a weighted mean of a step from the last iterate
            and a step from the clean point, and this is the largest weight of the latter.
    """

    steps: int = 100
    overshoot: float = 1.05
    backward: float = 0.9
    bias: float = 0.1


@dataclass
class _Search(AttackRun):
    """What one FAB search stores about the R points of a batch that it has not fooled yet.

    Attributes:
        at: current iterates, shape [R, ...].
        y: labels, shape [R].
        target: class to move towards, shape [R]; not used by an untargeted search.
    """

    at: Tensor
    y: Tensor
    target: Tensor


def fab(
    points: Survivors,
    target: Tensor | None,
    settings: FabSettings,
    *,
    random_start: bool = False,
) -> tuple[Tensor, Tensor]:
    """Search once for the nearest misclassified input of each point not fooled yet, in Linf or L2.

    The search for a point ends as soon as it finds a misclassified input within eps.

    Args:
        points: points of one batch, with inputs in [0, 1]; stores the adversarial inputs found.
        target: class to move towards, shape [B]; None for the class whose boundary is nearest at
            each step.
        settings: constants of FAB.
        random_start: whether to start at a random point at distance eps / 2 instead of the clean
            point.

    Returns:
        tuple: the least distance at which this search found a misclassified input, shape [B], and
        that input, shape [B, ...]. For a point without one, also if it was fooled before this
        search, they are infinity and the clean input.

    Raises:
        AllFooled: as soon as all points of the batch are fooled.
    """
    rows = points.rest()
    distance, nearest = points.x.new_full((len(points.x),), torch.inf), points.x.clone()
    x, y = points.x[rows], points.y[rows]
    at = _random_start(points, x) if random_start else x.clone()
    search = _Search(rows, x, at, y, y if target is None else target[rows])
    for _ in range(settings.steps):
        gap, normal = (_nearest if target is None else _difference)(points, search)
        with torch.no_grad():
            search.at = _stepped(points, search, gap, normal, settings)
            logits = points.model(search.at)
            beyond = (logits.argmax(1) != search.y).nonzero().flatten()
            if len(beyond):
                found, rows = points.threat.norms((search.at - search.x)[beyond]), search.rows
                nearer = found < distance[rows[beyond]]
                places = beyond[nearer]
                distance[rows[places]], nearest[rows[places]] = found[nearer], search.at[places]
                left = points.keep(rows, search.at, logits)
                clean = search.x[beyond]
                search.at[beyond] = clean + (search.at[beyond] - clean) * settings.backward
                search.keep_only(left)
    return distance, nearest


def _stepped(
    points: Survivors, search: _Search, gap: Tensor, normal: Tensor, settings: FabSettings
) -> Tensor:
    """Return the next iterates, shape [R, ...]: steps to the linearised boundary.

    (1 - a)(x_i + eta d_i) + a (x_0 + eta d_0), equation 9, with
    a = min(``|d_i|`` / (``|d_i|`` + ``|d_0|``), alpha_max), equation 10. d_i and d_0 lead from the
    iterate x_i and from the clean point x_0 to the linearised boundary.

    Args:
        points: points of the batch, for the threat model.
        search: state of the search.
        gap: z_c - z_y at the iterates, for the class c to move towards, shape [R].
        normal: gradient of ``gap`` with respect to the iterates, shape [R, ...].
        settings: constants of FAB.
    """
    at, x, w = search.at.flatten(1), search.x.flatten(1), normal.flatten(1)
    offset = (w * at).sum(1) - gap
    norm: Literal["Linf", "L2"] = "Linf" if points.threat.norm == "Linf" else "L2"
    from_here = project_on_hyperplane(at, w, offset, norm)
    from_clean = project_on_hyperplane(x, w, offset, norm)
    here, clean = (points.threat.norms(d).clamp_(min=1e-8) for d in (from_here, from_clean))
    share = (here / (here + clean)).clamp_(max=settings.bias)[:, None]
    stepped = from_here.mul_(settings.overshoot).add_(at).mul_(1 - share)
    stepped.add_(from_clean.mul_(settings.overshoot).add_(x).mul_(share))
    return stepped.clamp_(0, 1).view_as(search.x)


def _difference(points: Survivors, search: _Search) -> tuple[Tensor, Tensor]:
    """Return z_target - z_y at the iterates, shape [R], and its input gradient, shape [R, ...]."""
    at = search.at.detach().requires_grad_()
    with torch.enable_grad():
        logits = points.model(at)
        gap = logits.gather(1, search.target[:, None]) - logits.gather(1, search.y[:, None])
        normal = finite(input_gradient(gap.sum(), at))
    return gap.detach().squeeze(1), normal


def _nearest(points: Survivors, search: _Search) -> tuple[Tensor, Tensor]:
    """Return z_c - z_y at the iterates, shape [R], and its input gradient, shape [R, ...].

    c is the class whose linearised boundary is nearest: ``|z_c - z_y|`` divided by the dual norm of
    the gradient is smallest.
    """
    at = search.at.detach().requires_grad_()
    with torch.enable_grad():
        logits = points.model(at)
        gaps = logits - logits.gather(1, search.y[:, None])
        normals = torch.stack(
            [torch.autograd.grad(gap.sum(), at, retain_graph=True)[0] for gap in gaps.unbind(1)], 1
        )
        normals = finite(normals.flatten(0, 1)).view_as(normals)
    gaps = gaps.detach()
    slopes = normals.flatten(2).norm(p=1 if points.threat.norm == "Linf" else 2, dim=2)
    far = (gaps.abs() / (slopes + 1e-12)).scatter_(1, search.y[:, None], torch.inf)
    each, chosen = torch.arange(len(at), device=at.device), far.argmin(1)
    return gaps[each, chosen], normals[each, chosen]


def _random_start(points: Survivors, x: Tensor) -> Tensor:
    """Return one random start per clean input in ``x``, at distance eps / 2, within [0, 1]."""
    linf = points.threat.norm == "Linf"
    noise = (2 * torch.rand(x.shape) - 1 if linf else torch.randn(x.shape)).to(x)
    size = 2 * points.threat.norms(noise) / points.threat.eps
    return (x + noise / per_point(size, x)).clamp_(0, 1)


# Each pass but the last moves at least one more coordinate to its bound. A few passes are enough.
_MOST_PASSES = 200


def project_on_hyperplane(t: Tensor, w: Tensor, b: Tensor, norm: Literal["Linf", "L2"]) -> Tensor:
    """Return the smallest d with w.(t + d) = b and t + d in [0, 1], shape [B, n].

    If no point of the box lies on the hyperplane, t + d is the corner nearest to it.

    d_i = s_i min(l u_i, r_i): coordinate i moves by l u_i towards the hyperplane, in the direction
    s_i (1 or -1), at most to the edge of the box, which is r_i away. l is the same for all
    coordinates, and u_i is 1 for Linf and ``|w_i|`` for L2. The right l solves
    sum_i ``|w_i|`` min(l u_i, r_i) = ``|b - w.t|``. The left side is concave and piecewise linear
    in l, so that Newton's method rises from 0 to the solution and is exact after a few passes over
    the coordinates. The authors' code sorts the coordinates instead.

    Args:
        t: points of the box [0, 1]^n, shape [B, n].
        w: normals of the hyperplanes, shape [B, n].
        b: offsets of the hyperplanes, shape [B].
        norm: norm in which d is smallest.
    """
    missing = b - (w * t).sum(1)
    direction = w.sign().mul_(missing.sign()[:, None])
    # 1 - t or t. Written without torch.where and boolean factors, which CPUs do not vectorise.
    room = (0.5 - t).mul_(direction).add_(0.5).clamp_(min=0)
    weight = w.abs()
    slopes = weight if norm == "Linf" else weight.square()
    reach = weight * room
    target = missing.abs()
    step, marks = torch.zeros_like(target), torch.empty_like(room)
    for _ in range(_MOST_PASSES):
        moved = _moved(step, weight, norm, out=marks)
        torch.gt(room, moved, out=marks)  # 1 for coordinates that have not met the box
        slope = (slopes * marks).sum(1)
        left = target - (reach * marks.neg_().add_(1)).sum(1)
        ahead = left / slope.clamp(min=1e-30)
        climbs = (slope > 0) & (ahead > step)
        if not bool(climbs.any()):
            break
        step = torch.where(climbs, ahead, step)
    return direction.mul_(torch.minimum(_moved(step, weight, norm, out=marks), room))


def _moved(step: Tensor, weight: Tensor, norm: str, *, out: Tensor) -> Tensor:
    """Return l u_i of ``project_on_hyperplane``, in a shape that broadcasts to [B, n].

    Args:
        step: l of each point, shape [B].
        weight: ``|w|``, shape [B, n].
        norm: "Linf" or "L2".
        out: memory for the result, shape [B, n]; not used for Linf.
    """
    return step[:, None] if norm == "Linf" else torch.mul(weight, step[:, None], out=out)
