"""Pictures of masks: which cells are filled, and how blocks are averaged."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from robust_plugin.recipes.pages.mask_pictures import mask_picture

COLOR, RGB = "#a53ca6", (0xA5, 0x3C, 0xA6)


def cells(url: str, size: tuple[int, int]) -> np.ndarray:
    """The picture with one pixel per cell, [rows, columns, red green blue alpha]."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    rows, columns = size
    scale = image.width // columns
    assert image.size == (columns * scale, rows * scale)
    pixels = np.asarray(image)
    shown = pixels[::scale, ::scale]
    assert (np.kron(shown, np.ones((scale, scale, 1), int)) == pixels).all()  # sharp cells
    return shown


def test_a_matrix_has_one_cell_per_weight() -> None:
    kept = torch.tensor([[True, False, False], [False, True, True]])
    url, says = mask_picture(kept, COLOR)
    shown = cells(url, (2, 3))
    assert ((shown[..., 3] == 255) == kept.numpy()).all()
    assert (shown[kept.numpy()][:, :3] == RGB).all()
    assert 0 < shown[0, 1, 3] < 60  # faint, whatever the page behind it
    assert says == "one row for each output, one column for each input."


def test_a_convolution_has_one_tile_per_filter() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(6, 2, 3, 3, generator=generator) < 0.3
    url, says = mask_picture(kept, COLOR)
    across = 3
    shown = cells(url, (2 * 4 - 1, across * 7 - 1))
    for number in range(6):
        row, column = divmod(number, across)
        tile = shown[4 * row : 4 * row + 3, 7 * column : 7 * column + 6, 3] == 255
        expected = torch.cat([kept[number, 0], kept[number, 1]], dim=1)
        assert (tile == expected.numpy()).all()
    assert (shown[3, :, 3] == 0).all() and (shown[:, 6, 3] == 0).all()  # space between tiles
    some, _ = mask_picture(kept[:5], COLOR)
    assert (cells(some, (2 * 4 - 1, across * 7 - 1))[4:, 14:, 3] == 0).all()  # no sixth filter
    assert "its input channels side by side" in says


def test_a_large_matrix_is_averaged_over_blocks() -> None:
    kept = torch.zeros(200, 400, dtype=torch.bool)
    kept[:2, :2] = True  # one block of 2 x 2 is full
    kept[0, 2] = True  # a quarter of its neighbour
    url, says = mask_picture(kept, COLOR)
    shown = cells(url, (100, 200))
    assert shown[0, 0, 3] == 255 and shown[0, 1, 3] == 64
    assert (shown[1:, :, 3] == shown[1, 0, 3]).all() and shown[1, 0, 3] < 60
    assert "200 outputs from top to bottom, 400 inputs" in says and "keeps 100 %" in says
    assert mask_picture(torch.zeros(300, 300, dtype=torch.bool), COLOR)[1].endswith("keeps 0 %.")
