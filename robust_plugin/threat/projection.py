"""Nearest points: of an L1 ball, and of a hyperplane within a box."""

from __future__ import annotations

import torch
from torch import Tensor


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
