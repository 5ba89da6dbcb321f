"""What every plot has to be."""

from pathlib import Path

from PIL import Image


def check_picture(path: Path) -> None:
    """Assert that a PNG is a plot of usual size and that it is the only file in its folder."""
    with Image.open(path) as picture:
        width, height = picture.size
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert width > 400 and height > 300 and colours is not None
    assert len(colours) > 10  # not an empty sheet
    assert [each.name for each in path.parent.iterdir()] == [path.name]
