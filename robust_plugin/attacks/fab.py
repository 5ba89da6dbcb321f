"""FAB: the nearest decision boundary, by projections on linearised ones.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", algorithm 1. What it looks for is a distance, so that one run answers for every radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_plugin.attacks import finite, input_gradient
from robust_plugin.projection import project_on_hyperplane
from robust_plugin.standing import Run, Standing
from robust_plugin.threat import per_point


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
