"""Test points as pictures, without and with the attack, with what the network takes them for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugin.recipes.pages.html import data_url
from robust_plugin.recipes.pages.run_facts import Example


@dataclass(frozen=True)
class ShownExample:
    """One test point as the macro ``examples`` of parts.html.j2 shows it.

    Attributes:
        number: index of the point in the test set.
        truth: name of its class.
        images: PNG images as data URLs, by what they show.
        change: largest change of a pixel's value, as text.
        answers: for the clean and the attacked image: which it is, the predicted class with the
            confidence in per cent, and whether the class is right.
    """

    number: int
    truth: str
    images: dict[str, str]
    change: str
    answers: tuple[tuple[str, str, bool], tuple[str, str, bool]]


def shown_examples(examples: Sequence[Example], class_names: Sequence[str]) -> list[ShownExample]:
    """Return test points as a page shows them; points that are no images are left out.

    The third image of a point is the difference of the other two. It is scaled so that the largest
    change of a pixel is black or white; grey is no change.

    Args:
        examples: the points; images have one or three channels.
        class_names: name of each class.
    """
    return [_shown(each, class_names) for each in examples if each.clean.shape[0] in (1, 3)]


def is_image(x: Tensor) -> bool:
    """Return whether a batch of inputs can be shown: shape [B, 1, H, W] or [B, 3, H, W]."""
    return x.dim() == 4 and x.shape[1] in (1, 3)


def _shown(example: Example, class_names: Sequence[str]) -> ShownExample:
    delta = example.adversarial - example.clean
    change = float(delta.abs().max())
    answers = [
        (name, f"{class_names[label]}, {100 * confidence:.0f} %", label == example.label)
        for name, label, confidence in zip(
            ("clean", "attacked"), example.predictions, example.confidences, strict=True
        )
    ]
    return ShownExample(
        example.point,
        class_names[example.label],
        {
            "clean": _png(example.clean),
            "attacked": _png(example.adversarial),
            "change": _png(0.5 + delta / (2 * max(change, 1e-12))),
        },
        f"{change:.2g}",
        (answers[0], answers[1]),
    )


def _png(image: Tensor) -> str:
    """Return an image [C, H, W] with values in [0, 1] as a data URL; other values are clipped."""
    from matplotlib.image import imsave

    # Rounded here, because matplotlib rounds down.
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0)
    buffer = io.BytesIO()
    imsave(buffer, pixels.expand(-1, -1, 3).contiguous().numpy(), format="png")
    return data_url(buffer.getvalue())
