"""Normalisation as a layer, so that a threat model speaks of pixels.

A radius is in the units of the inputs that a network gets. Where the data loader normalises, a ball
of 8/255 is another one, eps / std in each channel, and [0, 1] no longer bounds the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std by channel, x of shape [N, C, H, W] in [0, 1]: the first layer of a network.

    Args:
        mean: one number a channel, in pixel units; a sequence, a tensor or an array.
        std: one positive number a channel, likewise.

    Raises:
        TypeError: a single number, or something without numbers.
        ValueError: different lengths, or a std that is not positive.

    >>> from robust_plugin import IBP, ThreatModel
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    >>> model = nn.Sequential(Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)), network)
    >>> x = torch.rand(2, 3, 4, 4)
    >>> IBP(ThreatModel("Linf", eps="8/255")).margins(model, x, torch.tensor([0, 1])).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        try:
            mean, std = [float(v) for v in mean], [float(v) for v in std]
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"mean={mean} and std={std}: one number a channel, as (0.5, 0.5, 0.5)"
            ) from error
        if len(mean) != len(std) or not mean:
            raise ValueError(f"mean={mean} and std={std}: one number a channel in each")
        if min(std) <= 0:
            raise ValueError(f"std={std}: every channel needs a positive one")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, same shape."""
        return (x - self.mean) / self.std
