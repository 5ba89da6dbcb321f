"""Ramps: how eps and the weights of loss terms change over the epochs of a training phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.values import is_number

Shape = Literal["linear", "smoothed"]

# The smoothed ramp is a quartic for this share of its length (Gowal et al. 2018, official code).
_QUARTIC = 0.25


@runtime_checkable
class Ramped(Protocol):
    """An objective whose eps or loss weights follow a schedule over the epochs."""

    def progress(self, epoch: float, epochs: float) -> None:
        """Set eps and loss weights to their values after ``epoch`` of ``epochs`` epochs.

        Args:
            epoch: number of epochs that have passed; may be a fraction.
            epochs: number of epochs of the training phase.
        """


@explain_wrong_calls
@dataclass(frozen=True)
class Ramp:
    """A function that rises from 0 to 1 over a part of a training phase.

    Attributes:
        start: share of the phase's epochs after which the ramp begins to rise, in [0, 1].
        end: share of the phase's epochs after which the ramp is 1, in [start, 1].
        shape: ``"linear"``, or ``"smoothed"``: c t^4 until t = 1/4, then a straight line to 1 whose
            value and slope match at t = 1/4; t rises from 0 at ``start`` to 1 at ``end``.

    Raises:
        ValueError: unless 0 <= start <= end <= 1, or for an unknown shape.

    >>> Ramp(0.0, 0.5)(0.25)
    0.5
    """

    start: float = 0.0
    end: float = 0.6
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        numbers = is_number(self.start) and is_number(self.end)
        if not (numbers and 0 <= self.start <= self.end <= 1):
            raise ValueError(
                f"a ramp from {self.start!r} to {self.end!r}; legal: shares of the phase, "
                "0 <= start <= end <= 1."
            )
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape is {self.shape!r}; legal: {', '.join(get_args(Shape))}.")

    def at(self, epoch: float, epochs: float) -> float:
        """Return the value of the ramp, in [0, 1], after ``epoch`` of ``epochs`` epochs.

        Raises:
            ValueError: unless 0 <= epoch <= epochs.
        """
        numbers = is_number(epoch) and is_number(epochs)
        if not (numbers and 0 <= epoch <= epochs and epochs > 0):
            raise ValueError(
                f"progress to epoch {epoch!r} of {epochs!r}; legal: 0 <= epoch <= epochs."
            )
        return self(epoch / epochs)

    def __call__(self, share: float) -> float:
        """Return the value of the ramp, in [0, 1], after ``share`` (0 to 1) of the phase."""
        if share >= self.end:
            return 1.0
        if share <= self.start:
            return 0.0
        t = (share - self.start) / (self.end - self.start)
        if self.shape == "linear":
            return t
        # c m^4 + 4 c m^3 (1 - m) = 1 at t = 1.
        c = 1 / (_QUARTIC**4 + 4 * _QUARTIC**3 * (1 - _QUARTIC))
        if t < _QUARTIC:
            return float(c * t**4)
        return float(c * _QUARTIC**4 + 4 * c * _QUARTIC**3 * (t - _QUARTIC))


def check_ramp(ramp: Ramp | None, default: Ramp) -> Ramp:
    """Return ``ramp``, or ``default`` if it is None.

    Raises:
        TypeError: if ``ramp`` is neither a Ramp nor None.
    """
    if not (ramp is None or isinstance(ramp, Ramp)):
        raise TypeError(f"ramp is {ramp!r}; give a Ramp, as Ramp(start=0.0, end=0.6), or None.")
    return default if ramp is None else ramp
