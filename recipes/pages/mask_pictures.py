"""Pictures of masks: which weights of a layer are left, as small images for a page.

A kept weight has the colour of the method, a pruned one is a faint grey, so that a picture fits a
light and a dark page.
"""

from __future__ import annotations

import io
from math import ceil, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_plugin.recipes.pages.html import data_url

# Largest picture of a weight matrix, in cells; a larger matrix is averaged.
_ROWS, _COLUMNS = 100, 200
# Largest number of kernels that are drawn one by one.
_KERNELS = 256
# Opacity of a pruned weight, and the least one of a block with a kept weight.
_FAINT, _FAINTEST = 0.12, 0.1


def mask_picture(kept: Tensor, color: str) -> tuple[str, str]:
    """Return a picture of a mask as a data URL, and one sentence on what it shows.

    A convolution of few kernels is drawn kernel by kernel: one tile per filter, with its input
    channels side by side. Any other weight is drawn as a matrix, with one row per output and one
    column per input (for a convolution, per input channel and position in the kernel).

    Args:
        kept: whether each weight is kept; bool, [outputs, inputs, ...].
        color: colour of the method as ``"#rrggbb"``.
    """
    outputs, inputs = kept.shape[:2]
    if kept.dim() == 4 and kept[0, 0].numel() > 1 and outputs * inputs <= _KERNELS:
        what = "one tile for each filter" + ", its input channels side by side" * (inputs > 1)
        return _png(_tiles(kept), color), f"{what}. A filled square is a weight that is kept."
    matrix = kept.reshape(outputs, -1).float()
    rows, columns = min(_ROWS, outputs), min(_COLUMNS, matrix.shape[1])
    if (rows, columns) == tuple(matrix.shape):
        return _png(matrix, color), "one row for each output, one column for each input."
    shares = F.adaptive_avg_pool2d(matrix[None, None], (rows, columns))[0, 0]
    most = float(shares.max())
    says = (
        f"{outputs:,} outputs from top to bottom, {matrix.shape[1]:,} inputs from left to right, "
        f"averaged over blocks: the fullest colour is a block that keeps {100 * most:.3g} %."
    )
    return _png(shares / max(most, 1e-12), color), says


def _tiles(kept: Tensor) -> Tensor:
    """Return the kernels of a convolution in a grid; -1 between them.

    Args:
        kept: whether each weight is kept, [outputs, inputs, height, width].

    Returns:
        Tensor: values in [0, 1], and -1 for the space between, [rows, columns].
    """
    outputs, inputs, height, width = kept.shape
    filters = kept.float().permute(0, 2, 1, 3).reshape(outputs, height, inputs * width)
    across = max(1, min(outputs, ceil(sqrt(outputs * height / (inputs * width)) * 1.6)))
    down = ceil(outputs / across)
    grid = torch.full((down * (height + 1) - 1, across * (inputs * width + 1) - 1), -1.0)
    for number, each in enumerate(filters):
        row, column = number // across * (height + 1), number % across * (inputs * width + 1)
        grid[row : row + height, column : column + inputs * width] = each
    return grid


def _png(shares: Tensor, color: str) -> str:
    """Return a picture with one cell per value as a data URL of a PNG.

    Args:
        shares: values in [0, 1], drawn from faint grey to the full colour; -1 is transparent.
        color: colour of the value 1 as ``"#rrggbb"``.
    """
    from PIL import Image

    pixels = torch.zeros(*shares.shape, 4)
    pixels[shares == 0] = torch.tensor([128.0, 128.0, 128.0, 255 * _FAINT])
    some = shares > 0
    pixels[some, :3] = torch.tensor([*map(float, bytes.fromhex(color.removeprefix("#")))])
    pixels[some, 3] = 255 * shares[some].clamp(min=_FAINTEST)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.round().to(torch.uint8).numpy(), "RGBA")
    scale = max(1, 256 // max(shares.shape))  # so that few cells stay sharp everywhere
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.save(buffer, format="PNG")
    return data_url(buffer.getvalue())
