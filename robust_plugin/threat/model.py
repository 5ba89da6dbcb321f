"""The threat model: what an adversary may change, and how far."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.threat.projection import project_on_l1_ball
from robust_plugin.threat.units import parse_eps

Norm = Literal["Linf", "L2", "L1"]  # a ball of each lies in that of the one before


# A radius that is a smaller share of the box's width loses precision where the box is scaled to
# [0, 1].
_FINE = 1e-4


# Gradients below it are scaled up before their length is taken.
_SMALL = 1e-6


# In a box of grey levels, 0 to 255, radii below these are meant for inputs in [0, 1].
_LEAST_GREY = {"Linf": 0.2, "L2": 5.0, "L1": 100.0}


# Float32 rounding of x + delta moves a point by up to half a unit in the last place of x.
_TOLERANCE = 1e-5


@dataclass(frozen=True, init=False)
class ThreatModel:
    """All inputs x' with ||x' - x||_norm <= eps and low <= x' <= high.

    Args:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius in input units (pixels in [0, 1]), a number or a fraction as a string.
        low: smallest legal input value, -inf for none.
        high: largest legal input value, inf for none.

    Raises:
        ValueError: for an unknown norm, an eps that is no finite number >= 0, bounds that are not
            one number each, low >= high, an Linf radius beyond the whole box (8 where "8/255" was
            meant), or a radius of [0, 1] in a box of grey levels (8/255 where 8 was meant).

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
        low, high = _bound("low", low), _bound("high", high)
        if not low < high:
            raise ValueError(f"low is {low} and high is {high}; low must be below high.")
        radius = parse_eps(eps)
        if norm == "Linf" and radius > high - low:
            raise ValueError(
                f"eps is {eps!r}, more than the whole box [{low:g}, {high:g}] is wide; eps is in "
                'input units, such as "8/255".'
            )
        if high - low == 255 and 0 < radius < _LEAST_GREY[norm]:
            raise ValueError(
                f"eps is {eps!r} in the box [{low:g}, {high:g}], too small for grey levels; eps is "
                f"in input units: give {255 * radius:g} for a radius of {radius:g} in [0, 1]."
            )
        for name, value in (
            ("norm", norm),
            ("eps", radius),
            ("low", low),
            ("high", high),
        ):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        box = "" if (self.low, self.high) == (0, 1) else f" in [{self.low:g}, {self.high:g}]"
        return f"{self.norm} eps={self.fraction}{box}"

    @property
    def in_unit_box(self) -> ThreatModel:
        """The same ball for inputs scaled from [low, high] to [0, 1]: radius eps / (high - low).

        >>> str(ThreatModel("Linf", "16/255", low=-1, high=1).in_unit_box)
        'Linf eps=8/255'
        """
        return ThreatModel(self.norm, self.eps / (self.high - self.low))

    @property
    def fraction(self) -> str:
        """The radius as papers write it: in [0, 1] and whole 255ths as a fraction, else the number.

        >>> ThreatModel("Linf", 8 / 255).fraction, ThreatModel("L2", 0.5).fraction
        ('8/255', '0.5')
        """
        levels = 255 * self.eps
        # .2 is 51/255, and nobody means that.
        whole = self.norm == "Linf" and abs(levels - round(levels)) < 1e-9 and 1 <= levels <= 32
        whole = whole and (self.low, self.high) == (0, 1)
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

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent of Linf or L2: sign(grad), or grad / ||grad||_2 of each point.

        The length of the gradient does not matter: it may be as small as floats get.
        """
        if self.norm == "Linf":
            return grad.sign()
        largest = grad.flatten(1).abs().amax(1)
        # Small gradients by their largest entry first: their squares would be 0.
        small = (largest > 0) & (largest < _SMALL)
        grad = grad / per_point(torch.where(small, largest, 1.0).to(grad), grad)
        tiny = torch.finfo(grad.dtype).tiny
        return grad * per_point(1 / self.norms(grad).clamp(min=tiny), grad)

    def narrowed(self, x: Tensor, *, reach: float) -> ThreatModel:
        """Return the same ball in a smaller box where the present one is too wide for the radius.

        No point of the ball lies more than ``eps`` beyond the values of ``x``, whatever the norm,
        so that attacks which compute in units of the box may as well take a box that ends there.
        In one without bounds, or more than 10,000 radii wide, rounding would take the radius away.

        Args:
            x: inputs of finite values, shape [B, ...].
            reach: how far beyond the values of ``x`` the box has to go, at least eps.
        """
        width = self.high - self.low
        if width <= 1 or (math.isfinite(width) and self.eps >= _FINE * width):
            return self
        least, largest = (float(v) for v in x.aminmax())
        reach = reach or 1.0  # at eps = 0 there is no other measure
        low, high = max(self.low, least - reach), min(self.high, largest + reach)
        return ThreatModel(self.norm, self.eps, low=low, high=high)

    def with_radius(self, eps: float) -> ThreatModel:
        """Return the threat model with another radius, of whatever size a schedule asks for."""
        found = copy.copy(self)
        object.__setattr__(found, "eps", float(eps))
        return found

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
        lost = int((~x_adv.flatten(1).isfinite()).any(1).sum())
        if lost:
            raise ValueError(
                f"the attack returned NaN or infinite values for {lost} of {len(x)} points; legal: "
                f"finite values in [{self.low:g}, {self.high:g}]."
            )
        low, high = (float(v) for v in x_adv.aminmax())
        if not (self.low - _TOLERANCE <= low and high <= self.high + _TOLERANCE):
            raise ValueError(
                f"the attack returned values from {low:g} to {high:g}, outside the threat model's "
                f"[{self.low:g}, {self.high:g}]."
            )
        farthest = float(self.norms(x_adv.double() - x.double()).max())
        # The input's own precision bounds what an attack in that dtype can promise.
        largest = float(x.abs().max()) + self.eps
        slack = max(_TOLERANCE, torch.finfo(x.dtype).eps * largest)
        if not farthest <= self.eps * (1 + _TOLERANCE) + slack:
            raise ValueError(
                f"the attack moved a point by {farthest:g} in {self.norm}, beyond "
                f"eps = {self.eps:g}; give the attack the same eps, norm and bounds."
            )


def _bound(name: str, value: object) -> float:
    """Return a bound of the box as a number; a tensor of one value is one, too."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} is {value!r}; legal: one number. All channels have one box: keep the inputs "
            "in it, and normalise inside the model (Normalize)."
        ) from error


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
