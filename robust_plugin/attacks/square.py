"""Square Attack: adds random squares of noise to images and keeps those that lower the margin.

Andriushchenko et al. 2020, algorithms 1 to 3. The attack uses no gradients. At each query (forward
pass), the square has the same place in all images of a batch, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugin.attacks.losses import margin_loss
from robust_plugin.attacks.survivors import AttackRun, Survivors
from robust_plugin.threat.model import per_point

# The share of the image that a square covers is halved after each of these numbers of queries: the
# authors' schedule for 10,000 queries.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass
class _Search(AttackRun):
    """What Square stores about the R points of a batch that it attacks and has not fooled yet.

    Attributes:
        best: inputs of the lowest margin so far, shape [R, C, H, W].
        margin: z_y - max_{j != y} z_j at ``best``, shape [R].
    """

    best: Tensor
    margin: Tensor


def square(points: Survivors, *, queries: int, share: float) -> None:
    """Run Square once, in Linf or L2, on the points that are not fooled yet.

    Args:
        points: points of one batch of images in [0, 1], shape [B, C, H, W]; stores the adversarial
            inputs found.
        queries: number of forward passes per point, after that of the starting image.
        share: p, the share of the image that the first square covers, in (0, 1].

    Raises:
        AllFooled: as soon as all points of the batch are fooled.
        ValueError: if the inputs are not images.
    """
    if points.x.dim() != 4:
        raise ValueError(
            f"inputs have shape {tuple(points.x.shape)}; Square draws squares on images, "
            "[batch, channels, height, width]. Take another attack."
        )
    rows = points.rest()
    linf = points.threat.norm == "Linf"
    with torch.inference_mode():
        x = points.x[rows].clone()
        margin = x.new_full((len(rows),), torch.inf)
        search = _Search(rows, x, (_stripes if linf else _tiles)(points, x), margin)
        _keep_better(points, search, search.best)
        for query in range(queries):
            # Side of the square at this query, in pixels.
            halvings = sum(query > at for at in _HALVINGS)
            side = math.sqrt(share / 2**halvings * x[0, 0].numel())
            _keep_better(points, search, (_linf if linf else _l2)(points, search, round(side)))


def _keep_better(points: Survivors, search: _Search, x_new: Tensor) -> None:
    """Keep the inputs ``x_new`` [R, C, H, W] that lower the margin, and drop fooled points."""
    logits = points.model(x_new)
    margin = -margin_loss(logits, points.y[search.rows])
    lower = (margin < search.margin).nonzero().flatten()
    if len(lower) == 0:
        return
    search.best[lower], search.margin[lower] = x_new[lower], margin[lower]
    left = (search.margin > 0).nonzero().flatten()
    if len(left) < len(search.rows):
        points.keep(search.rows, x_new, logits)
        search.keep_only(left)


def _linf(points: Survivors, search: _Search, side: int) -> Tensor:
    """Return new inputs [R, C, H, W]: ``search.best``, changed in one square.

    In the square, 2 eps or -2 eps is added to each channel, and the result is projected.

    Args:
        points: points of the batch, for the threat model.
        search: state of the attack.
        side: side of the square, in pixels.
    """
    eps, channels = points.threat.eps, search.x.shape[1]
    here = _window(search.x, max(side, 1))
    signs = _signs((channels, 1, 1), search.x)
    clean = search.x[here]
    x_new = search.best.clone()
    x_new[here] += 2 * eps * signs
    x_new[here] = (x_new[here] - clean).clamp_(-eps, eps).add_(clean).clamp_(0, 1)
    return x_new


def _l2(points: Survivors, search: _Search, side: int) -> Tensor:
    """Return new inputs [R, C, H, W]: the perturbation of one square is moved to another square.

    The other square also gets the part of the radius eps that no pixel has used so far.

    Args:
        points: points of the batch, for the threat model.
        search: state of the attack.
        side: side of the squares, in pixels.
    """
    eps, channels = points.threat.eps, search.x.shape[1]
    # Odd, so that the pattern has a centre.
    side = min(max(side, 3) | 1, *search.x.shape[2:])
    here, there = _window(search.x, side), _window(search.x, side)
    delta = search.best - search.x
    spent = points.threat.norms(delta).square()
    inside = delta[here].clone()
    delta[here] = 0
    union = _mass(inside) + _mass(delta[there])
    delta[there] = 0
    pattern = _pattern(side, search.x) * _signs((len(delta), channels, 1, 1), search.x)
    pattern += inside / (1e-12 + _mass(inside).sqrt())
    room = (eps**2 - per_point(spent, delta)).clamp_(min=0) / channels + union
    delta[here] = pattern * (room.sqrt() / (1e-12 + _mass(pattern).sqrt()))
    scale = eps / (points.threat.norms(delta) + 1e-12)
    return delta.mul_(per_point(scale, delta)).add_(search.x).clamp_(0, 1)


def _mass(delta: Tensor) -> Tensor:
    """Return the squared L2 norm of each channel of ``delta`` [R, C, ...], as [R, C, 1, 1]."""
    return delta.square().sum((2, 3), keepdim=True)


def _stripes(points: Survivors, x: Tensor) -> Tensor:
    """Return the starting images for Linf: ``x`` plus vertical stripes of eps and -eps."""
    signs = _signs((len(x), x.shape[1], 1, x.shape[3]), x)
    return (x + points.threat.eps * signs).clamp_(0, 1)


def _tiles(points: Survivors, x: Tensor) -> Tensor:
    """Return the starting images for L2: ``x`` plus noise of norm eps, in about 5 x 5 tiles."""
    height, width = x.shape[2:]
    side = max(height // 5, 1)
    first = (height - 5 * side) // 2
    delta = torch.zeros_like(x)
    for row in range(height // side):
        for column in range(width // side):
            top, left = max(first + row * side, 0), max(first + column * side, 0)
            tile = _pattern(side, x) * _signs((len(x), x.shape[1], 1, 1), x)
            room = delta[:, :, top : top + side, left : left + side]
            room += tile[:, :, : room.shape[2], : room.shape[3]]
    scale = points.threat.eps / (points.threat.norms(delta) + 1e-12)
    return delta.mul_(per_point(scale, delta)).add_(x).clamp_(0, 1)


def _window(x: Tensor, side: int) -> tuple[slice, slice, slice, slice]:
    """Return an index into ``x`` [R, C, H, W]: a random square, ``side`` pixels wide."""
    height, width = x.shape[2:]
    side = min(side, height, width)
    top = int((height - side) * torch.rand(1))
    left = int((width - side) * torch.rand(1))
    return slice(None), slice(None), slice(top, top + side), slice(left, left + side)


def _signs(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor of random signs, 1 or -1, with the dtype and the device of ``like``."""
    return (2 * torch.rand(shape) - 1).sign().to(like)


def _pattern(side: int, like: Tensor) -> Tensor:
    """Return the noise of one L2 square, shape [side, side]: a peak above or beside a trough.

    Its L2 norm is 1, its dtype and device those of ``like``.
    """
    upper = side // 2
    pattern = torch.cat([_peak(upper, side), -_peak(side - upper, side)])
    pattern /= pattern.norm()
    return (pattern.t() if torch.rand(1) > 0.5 else pattern).to(like)


def _peak(height: int, width: int) -> Tensor:
    """Return a peak of L2 norm 1, shape [height, width], equation 2.

    It is a sum of nested rectangles around the centre; the k-th from the inside adds 1 / k^2.
    """
    peak = torch.zeros(height, width)
    if height == 0:
        return peak
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        peak[rows, columns] += 1 / (ring + 1) ** 2
    return peak.div_(peak.norm())
