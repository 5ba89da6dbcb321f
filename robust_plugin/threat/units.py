"""Radii, noise levels and ranges in input units: how they are read and checked.

Threat models, smoothing certificates and objectives with noise use these functions.
"""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

from robust_plugin.runtime.values import is_number

# Float32 rounding of x + delta moves a point by up to half a unit in the last place of x. Checks of
# ranges and of distances therefore allow this much, in input units.
TOLERANCE = 1e-5

# Noise of a larger standard deviation, as a multiple of the range's width, is in another unit.
_WIDEST = 10


def parse_eps(eps: float | str, *, name: str = "eps") -> float:
    """Return a radius as a float, read from a number or from a fraction as a string.

    Args:
        eps: radius in input units: a number, or a string such as ``"8/255"`` or ``"2.5/255"``.
        name: name of the setting that holds the radius, for the error message.

    Raises:
        ValueError: if ``eps`` is not a finite number >= 0.

    >>> parse_eps("8/255") == 8 / 255
    True
    """
    try:
        if isinstance(eps, bool):
            raise TypeError
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


def parse_bound(name: str, value: object) -> float:
    """Return a bound of the box as a float; a tensor of one value is legal too.

    Args:
        name: name of the bound, "low" or "high", for the error message.
        value: the bound.

    Raises:
        ValueError: if ``value`` is not a single number.
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} is {value!r}; legal: one number. All channels have one box: keep the inputs "
            "in it, and normalise inside the model (Normalize)."
        ) from error


def check_sigma(sigma: float, low: float = 0.0, high: float = 1.0) -> None:
    """Raise a ValueError unless ``sigma``, a standard deviation of noise, fits inputs in a range.

    It must be a number above 0, and at most ten times as large as the range is wide: 64 for inputs
    in [0, 1] was meant in grey levels.

    Args:
        sigma: standard deviation of the noise.
        low: smallest legal input value.
        high: largest legal input value.
    """
    if not (is_number(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma!r}; legal: a number above 0, in input units.")
    if sigma > _WIDEST * (high - low):
        raise ValueError(
            f"sigma is {sigma!r}, and inputs lie in [{low:g}, {high:g}]; sigma is in input units, "
            "such as 0.25 for inputs in [0, 1]."
        )


def check_box(low: float, high: float) -> None:
    """Raise a ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high.")


def check_units(x: Tensor, low: float, high: float, name: str) -> None:
    """Raise an error unless the inputs are floats within [low, high].

    The caller's noise level sigma and certified radii are in the same unit as this range.

    Args:
        x: inputs, shape [B, ...].
        low: smallest legal input value.
        high: largest legal input value.
        name: name of the function or class that the user gave ``low`` and ``high`` to, for the
            error message.

    Raises:
        TypeError: if ``x`` is not a tensor.
        ValueError: if ``x`` does not hold floats, is an empty batch, or has values outside of
            [low, high].
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs are a {type(x).__name__}; give a tensor.")
    if not x.is_floating_point() or x.numel() == 0 or x.dim() == 0:
        raise ValueError(
            f"inputs are {x.dtype} of shape {tuple(x.shape)}; the batch is empty, or not of floats "
            "of shape [B, ...]."
        )
    least, most = (float(v) for v in x.aminmax())
    if not (low - TOLERANCE <= least and most <= high + TOLERANCE):
        raise ValueError(
            f"inputs span [{least:g}, {most:g}], outside [{low:g}, {high:g}], so that sigma and "
            "radii would be in another unit; normalise inside the model (Normalize), or give "
            f"{name}(low=..., high=...)."
        )
