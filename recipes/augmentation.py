"""Random crops and mirrored images, drawn for each image (see ``robust_plugin.draws``).

Drawn on the CPU and done where the images are: the same numbers give the same images anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from robust_plugin.draws import uniform_like

AUGMENTATIONS = ("none", "crop", "flip", "crop+flip")

_PADDING = 4  # pixels on each side before a crop, as CIFAR recipes have it


def augmented(x: Tensor, augmentation: str) -> Tensor:
    """Return images after one of ``AUGMENTATIONS``; x is [N, C, H, W], and so is the result."""
    if "crop" in augmentation:
        x = _cropped(x)
    if "flip" in augmentation:
        mirrored = uniform_like(torch.empty(len(x))) < 0.5
        x = torch.where(mirrored[:, None, None, None].to(x.device), x.flip(3), x)
    return x


def _cropped(x: Tensor) -> Tensor:
    """Move each image by up to ``_PADDING`` pixels each way, zeros coming in: a random crop."""
    n, channels, height, width = x.shape
    top, left = (uniform_like(torch.empty(n, 2)) * (2 * _PADDING + 1)).long().T[..., None]
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    images, planes = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    where = tuple(each.to(x.device) for each in (images, planes, rows, columns))
    return pad(x, (_PADDING,) * 4)[where]
