"""FAB: the nearest decision boundary, by projections on linearised ones.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", algorithm 1. What it looks for is a distance, so that one run answers for every radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_plugin.attacks.losses import finite, input_gradient
from robust_plugin.attacks.survivors import Run, Standing
from robust_plugin.threat.model import per_point


@dataclass(frozen=True)
class FabSettings:
    """FAB's constants; the defaults are those that AutoAttack runs it with.

    Attributes:
        steps: projections.
        overshoot: eta, by how much a step goes beyond the linearised boundary.
        backward: beta, the share of its distance that a point beyond the boundary keeps.
        bias: alpha_max, how strongly steps are drawn to the clean point.
    """

    steps: int = 100
    overshoot: float = 1.05
    backward: float = 0.9
    bias: float = 0.1


@dataclass
class _Search(Run):
    """Where a run is, and the classes that it is between."""

    at: Tensor
    y: Tensor
    target: Tensor


def fab(
    points: Standing,
    target: Tensor | None,
    settings: FabSettings,
    *,
    random_start: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run once over the points that stand, in Linf or L2, and find how far each has to move.

    Args:
        points: of one batch, inputs in [0, 1].
        target: the class to cross to, shape [B]; None for whichever is nearest at each step.
        settings: constants.
        random_start: from a random point within half of eps instead of the clean one.

    Returns:
        tuple: the least distance at which a point was misclassified, infinite where it never was,
        shape [B]; and the input there, shape [B, ...]. A point that is fooled within eps leaves
        the run at once.
    """
    rows = points.rest()
    distance, nearest = points.x.new_full((len(points.x),), torch.inf), points.x.clone()
    x, y = points.x[rows], points.y[rows]
    at = _near(points, x) if random_start else x.clone()
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
                standing = points.keep(rows, search.at, logits)
                clean = search.x[beyond]
                search.at[beyond] = clean + (search.at[beyond] - clean) * settings.backward
                search.only(standing)
    return distance, nearest


def _stepped(
    points: Standing, search: _Search, gap: Tensor, normal: Tensor, settings: FabSettings
) -> Tensor:
    """Step towards the linearised boundary, from where the search is and from the clean point.

    (1 - a)(x_i + eta d_i) + a (x_0 + eta d_0), equation 9, with a = min(|d_i|/(|d_i| + |d_0|),
    alpha_max), equation 10.
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


def _difference(points: Standing, search: _Search) -> tuple[Tensor, Tensor]:
    """z_target - z_y and its gradient: shapes [R] and [R, ...]."""
    at = search.at.detach().requires_grad_()
    with torch.enable_grad():
        logits = points.model(at)
        gap = logits.gather(1, search.target[:, None]) - logits.gather(1, search.y[:, None])
        normal = finite(input_gradient(gap.sum(), at))
    return gap.detach().squeeze(1), normal


def _nearest(points: Standing, search: _Search) -> tuple[Tensor, Tensor]:
    """The same for the class whose linearised boundary is nearest in the dual norm."""
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


def _near(points: Standing, x: Tensor) -> Tensor:
    """A random point at half of eps."""
    linf = points.threat.norm == "Linf"
    noise = (2 * torch.rand(x.shape) - 1 if linf else torch.randn(x.shape)).to(x)
    size = 2 * points.threat.norms(noise) / points.threat.eps
    return (x + noise / per_point(size, x)).clamp_(0, 1)


# Each pass but the last leaves at least one more coordinate at its bound; a handful is enough.
_MOST_PASSES = 200


def project_on_hyperplane(t: Tensor, w: Tensor, b: Tensor, norm: Literal["Linf", "L2"]) -> Tensor:
    """Return the smallest d with w.(t + d) = b and t + d in [0, 1], as FAB asks for at each step.

    d_i = s_i min(l u_i, r_i): every coordinate moves towards the hyperplane by a common l times
    u_i (1 for Linf, |w_i| for L2) until it meets the box, r_i away. The l that gets there solves
    sum_i |w_i| min(l u_i, r_i) = |b - w.t|, concave and piecewise linear in l, so Newton's method
    climbs to it from 0 and is exact after a few passes over the coordinates, where the usual way
    sorts them. Where no point of the box lies on the hyperplane, the corner nearest to it.

    Args:
        t: points in [0, 1], shape [B, n].
        w: normals, shape [B, n].
        b: offsets, shape [B].
        norm: what is small.
    """
    missing = b - (w * t).sum(1)
    direction = w.sign().mul_(missing.sign()[:, None])
    # 1 - t or t. No torch.where, no boolean factors: neither is vectorised on CPUs.
    room = (0.5 - t).mul_(direction).add_(0.5).clamp_(min=0)
    weight = w.abs()
    slopes = weight if norm == "Linf" else weight.square()
    reach = weight * room
    target = missing.abs()
    step, marks = torch.zeros_like(target), torch.empty_like(room)
    for _ in range(_MOST_PASSES):
        moved = _moved(step, weight, norm, out=marks)
        torch.gt(room, moved, out=marks)  # 1 where the box is not met
        slope = (slopes * marks).sum(1)
        left = target - (reach * marks.neg_().add_(1)).sum(1)
        ahead = left / slope.clamp(min=1e-30)
        climbs = (slope > 0) & (ahead > step)
        if not bool(climbs.any()):
            break
        step = torch.where(climbs, ahead, step)
    return direction.mul_(torch.minimum(_moved(step, weight, norm, out=marks), room))


def _moved(step: Tensor, weight: Tensor, norm: str, *, out: Tensor) -> Tensor:
    """l u_i of each coordinate, ``weight`` being |w|."""
    return step[:, None] if norm == "Linf" else torch.mul(weight, step[:, None], out=out)
