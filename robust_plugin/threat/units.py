"""The threat model: what an adversary may change, and how far."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real

from torch import Tensor


def parse_eps(eps: float | str, *, name: str = "eps") -> float:
    """Read a radius: a number, or a fraction such as ``"8/255"`` or ``"2.5/255"``.

    Args:
        eps: in input units.
        name: what an error calls it.

    Raises:
        ValueError: if ``eps`` is not a finite number >= 0.

    >>> parse_eps("8/255") == 8 / 255
    True
    """
    try:
        if isinstance(eps, str):
            above, below = eps.split("/") if "/" in eps else (eps, "1")
            value = float(Fraction(above) / Fraction(below))
        else:
            value = float(eps)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError, RuntimeError):
        value = math.nan  # RuntimeError: a tensor of several values
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f'{name} is {eps!r}; give a number >= 0 or a fraction such as "8/255".')
    return value


# Rounding, as where a threat model checks its inputs.
_TOLERANCE = 1e-5


def check_sigma(sigma: float) -> None:
    """Raise a ValueError unless a standard deviation is a number above 0."""
    if not (isinstance(sigma, Real) and sigma > 0):
        raise ValueError(f"sigma is {sigma!r}; legal: a number above 0, in input units.")


def check_box(low: float, high: float) -> None:
    """Raise a ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high.")


def check_units(x: Tensor, low: float, high: float, name: str) -> None:
    """Raise unless inputs are floats within [low, high], the unit of sigma and of radii.

    Raises:
        TypeError: if they are no tensor.
        ValueError: for other dtypes, an empty batch, or values outside, naming what takes low and
            high.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs are a {type(x).__name__}; give a tensor.")
    if not x.is_floating_point() or x.numel() == 0 or x.dim() == 0:
        raise ValueError(
            f"inputs are {x.dtype} of shape {tuple(x.shape)}; the batch is empty, or not of floats "
            "of shape [B, ...]."
        )
    least, most = (float(v) for v in x.aminmax())
    if not (low - _TOLERANCE <= least and most <= high + _TOLERANCE):
        raise ValueError(
            f"inputs span [{least:g}, {most:g}], outside [{low:g}, {high:g}], so that sigma and "
            "radii would be in another unit; normalise inside the model (Normalize), or give "
            f"{name}(low=..., high=...)."
        )
