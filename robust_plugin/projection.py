"""Nearest points: of an L1 ball, and of a hyperplane within a box."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Each pass but the last leaves at least one more coordinate at its bound; a handful is enough.
_MOST_PASSES = 200


def project_on_l1_ball(delta: Tensor, radius: float) -> Tensor:
    """Return the point of the L1 ball nearest to each row: all entries shrunk by a common amount.

    sign(d) max(|d| - c, 0), with c from the largest entries, Duchi et al. 2008, figure 1.

    Args:
        delta: shape [B, n].
        radius: of the ball.
    """
    ordered = delta.abs().sort(dim=1, descending=True).values
    ranks = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    shrunk = (ordered.cumsum(1) - radius) / ranks
    count = (ordered > shrunk).sum(1, keepdim=True).clamp(min=1)
    common = shrunk.gather(1, count - 1).clamp(min=0)
    return delta.sign() * (delta.abs() - common).clamp(min=0)


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
