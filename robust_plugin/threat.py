"""The threat model: what an adversary may change, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.projection import project_on_l1_ball

Norm = Literal["Linf", "L2", "L1"]  # a ball of each lies in that of the one before

# Float32 rounding of x + delta moves a point by up to half a unit in the last place of x.
_TOLERANCE = 1e-5


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
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f'{name} is {eps!r}; give a number >= 0 or a fraction such as "8/255".')
    return value


@dataclass(frozen=True, init=False)
class ThreatModel:
    """All inputs x' with ||x' - x||_norm <= eps and low <= x' <= high.

    Args:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius in input units (pixels in [0, 1]), a number or a fraction as a string.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: for an unknown norm, an eps that is no finite number >= 0, low >= high, or an
            Linf radius beyond the whole box (8 where "8/255" was meant).

    >>> ThreatModel("Linf", eps="8/255").eps
    0.03137254901960784
    """

    norm: Norm
    eps: float
    low: float
    high: float

    def __init__(
        self, norm: Norm, eps: float | str, *, low: float = 0.0, high: float = 1.0
    ) -> None:
        if norm not in get_args(Norm):
            raise ValueError(f"norm is {norm!r}; legal: {', '.join(get_args(Norm))}.")
        if not low < high:
            raise ValueError(f"low is {low} and high is {high}; low must be below high.")
        radius = parse_eps(eps)
        if norm == "Linf" and radius > high - low:
            raise ValueError(
                f"eps is {eps!r}, more than the whole box [{low:g}, {high:g}] is wide; eps is in "
                'input units, such as "8/255".'
            )
        for name, value in (
            ("norm", norm),
            ("eps", radius),
            ("low", float(low)),
            ("high", float(high)),
        ):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.norm} eps={self.fraction}"

    @property
    def fraction(self) -> str:
        """The radius as papers write it: in 255ths where it is whole ones, else the number.

        >>> ThreatModel("Linf", 8 / 255).fraction, ThreatModel("L2", 0.5).fraction
        ('8/255', '0.5')
        """
        levels = 255 * self.eps
        # .2 is 51/255, and nobody means that.
        whole = self.norm == "Linf" and abs(levels - round(levels)) < 1e-9 and 1 <= levels <= 32
        return f"{round(levels)}/255" if whole else f"{self.eps:.6g}"

    def covers(self, other: ThreatModel) -> bool:
        """Return whether all that ``other`` allows is allowed here.

        In other norms too, by ||d||_inf <= ||d||_2 <= ||d||_1.

        >>> ThreatModel("Linf", 0.1).covers(ThreatModel("L2", 0.1))
        True
        """
        wider = get_args(Norm).index(self.norm) <= get_args(Norm).index(other.norm)
        inside = self.low <= other.low and other.high <= self.high
        return wider and other.eps <= self.eps and inside

    def norms(self, delta: Tensor) -> Tensor:
        """Return ||delta||_norm of each point: shape [B] for delta of shape [B, ...]."""
        flat = delta.flatten(1)
        if self.norm == "Linf":
            return flat.abs().amax(1)
        norms: Tensor = flat.norm(p=2 if self.norm == "L2" else 1, dim=1)
        return norms

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the point of the threat model nearest to ``x_adv``, for each point of a batch.

        Exact for Linf; for L2 and L1 the ball first and the box second, as attacks do (the box only
        brings a point nearer to x, which lies inside it).
        """
        delta = x_adv - x
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "L1":
            delta = project_on_l1_ball(delta.flatten(1), self.eps).view_as(delta)
        else:
            delta = delta * per_point(self.eps / self.norms(delta).clamp(min=1e-12), x).clamp(max=1)
        return (x + delta).clamp(self.low, self.high)

    def check_inputs(self, x: Tensor) -> None:
        """Raise unless ``x`` is finite floats within [low, high].

        Raises:
            TypeError: if it is no tensor.
            ValueError: otherwise, saying what it is.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs are a {type(x).__name__}; give a tensor.")
        if not x.is_floating_point():
            raise ValueError(
                f"inputs have dtype {x.dtype}; give floats in [{self.low:g}, {self.high:g}]."
            )
        if x.numel() == 0:
            raise ValueError(f"inputs have shape {tuple(x.shape)}; the batch is empty.")
        low, high = (float(v) for v in x.aminmax())
        if not (self.low - _TOLERANCE <= low and high <= self.high + _TOLERANCE):
            raise ValueError(
                f"inputs span [{low:g}, {high:g}], outside the threat model's "
                f"[{self.low:g}, {self.high:g}]; normalise inside the model (Normalize), or give "
                "ThreatModel(low=..., high=...)."
            )

    def check_result(self, x_adv: Tensor, x: Tensor) -> None:
        """Raise a ValueError unless ``x_adv`` is finite, in the box and in the ball of ``x``."""
        if x_adv.shape != x.shape:
            raise ValueError(
                f"the attack returned shape {tuple(x_adv.shape)} for inputs of {tuple(x.shape)}."
            )
        low, high = (float(v) for v in x_adv.aminmax())
        if not (self.low - _TOLERANCE <= low and high <= self.high + _TOLERANCE):
            raise ValueError(
                f"the attack returned values from {low:g} to {high:g}, outside the threat model's "
                f"[{self.low:g}, {self.high:g}]."
            )
        farthest = float(self.norms(x_adv.double() - x.double()).max())
        # The input's own precision bounds what an attack in that dtype can promise.
        slack = max(_TOLERANCE, torch.finfo(x.dtype).eps * max(abs(self.low), abs(self.high)))
        if not farthest <= self.eps * (1 + _TOLERANCE) + slack:
            raise ValueError(
                f"the attack moved a point by {farthest:g} in {self.norm}, beyond "
                f"eps = {self.eps:g}; give the attack the same eps, norm and bounds."
            )


def check_threat(threat: object) -> ThreatModel:
    """Return the threat model, or raise a TypeError if it is something else."""
    if not isinstance(threat, ThreatModel):
        raise TypeError(
            f'threat is {threat!r}; give a ThreatModel, as ThreatModel("Linf", "8/255").'
        )
    return threat


def per_point(values: Tensor, like: Tensor) -> Tensor:
    """View ``values`` of shape [B] so that it broadcasts over ``like`` of shape [B, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
