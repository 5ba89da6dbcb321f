"""Rate logits: parameters r, one per group, through which layer densities are learned.

The learned density of a group (usually one layer) is k = k_min + (1 - k_min) sigmoid(r), HARP
section 3.2. These functions convert between densities and logits, and read and set the logits that
masks hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robust_plugin.masks.group_mask import GroupMask

# Rate logits stay within +-12. Beyond that the gradient of a float32 sigmoid is too small for a
# rate to come back.
MAX_LOGIT = 12.0


def rate_logit(density: float, k_min: float) -> float:
    """Return the logit r of a density: logit((k - k_min) / (1 - k_min)), HARP section 3.2.

    It is limited to +-12, and so finite for k = k_min and k = 1.

    Args:
        density: k, share of the weights or channels that a group keeps, in (0, 1].
        k_min: least density of a group.
    """
    share = (density - k_min) / (1 - k_min)
    edge = 1 / (1 + math.exp(MAX_LOGIT))
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))


def limited(logits: Tensor, previous: Tensor, most: float) -> Tensor:
    """Shorten the step from ``previous`` to ``logits`` so that no logit moves by over ``most``.

    The direction of the step stays. The gradient of a large layer's logit is a sum over all its
    weights, and one step without this limit could empty or fill the layer. (A hook on the gradients
    could not do this: it would see gradients that are scaled, and of one process and one
    micro-batch each.)

    Args:
        logits: rate logits after an optimizer step, shape [groups].
        previous: rate logits before the step, same shape.
        most: largest change of one logit.

    Returns:
        Tensor: previous + c (logits - previous) with the largest legal c of at most 1.
    """
    change = logits - previous
    return previous + change * min(1.0, most / max(1e-12, float(change.abs().max())))


def rate_logits(masks: Sequence[GroupMask]) -> Tensor:
    """Return the rate logits r of all masks, detached, float64 on the CPU, shape [groups]."""
    return torch.stack([m.rate.detach() for m in masks if m.rate is not None]).double().cpu()


def set_logits(masks: Sequence[GroupMask], logits: Tensor) -> None:
    """Write ``logits``, shape [groups], into the masks; a mask without a rate logit is skipped."""
    for mask, logit in zip(masks, logits.tolist(), strict=True):
        if mask.rate is not None:
            mask.rate.data.fill_(logit)


def densities(masks: Sequence[GroupMask]) -> list[float]:
    """Return the learned density k_min + (1 - k_min) sigmoid(r) of each mask's group."""
    k_min = masks[0].k_min
    found: list[float] = (k_min + (1 - k_min) * rate_logits(masks).sigmoid()).tolist()
    return found
