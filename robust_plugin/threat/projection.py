"""The projection onto an L1 ball, which ``ThreatModel.project`` uses."""

from __future__ import annotations

import torch
from torch import Tensor


def project_on_l1_ball(delta: Tensor, radius: float) -> Tensor:
    """Return the nearest point of the L1 ball around 0 for each point of ``delta``, shape [B, n].

    The nearest point is sign(d) max(``|d|`` - c, 0): every coordinate shrinks by the same amount c,
    which the largest coordinates determine (Duchi et al. 2008, figure 1). A point inside the ball
    stays as it is.

    Args:
        delta: points to project, one per row, shape [B, n].
        radius: L1 radius of the ball, >= 0.
    """
    ordered = delta.abs().sort(dim=1, descending=True).values
    ranks = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    shrunk = (ordered.cumsum(1) - radius) / ranks
    count = (ordered > shrunk).sum(1, keepdim=True).clamp(min=1)
    common = shrunk.gather(1, count - 1).clamp(min=0)
    return delta.sign() * (delta.abs() - common).clamp(min=0)
