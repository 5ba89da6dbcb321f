"""The threat model: what an adversary may change, and how far.

``ThreatModel`` is the value that attacks, certifiers and objectives share. It projects points onto
the allowed set and checks inputs and the results of attacks.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.threat.projection import project_on_l1_ball
from robust_plugin.threat.units import TOLERANCE, check_box, parse_bound, parse_eps

# At equal radius, the ball of each norm lies inside the ball of the norm before it.
Norm = Literal["Linf", "L2", "L1"]

# A radius below this share of the box's width loses precision when the box is scaled to [0, 1].
_FINE = 1e-4

# Gradients whose largest entry is below this are scaled up before their L2 norm is computed.
_SMALL = 1e-6

# In a box of grey levels, 0 to 255, a radius below these was probably meant for inputs in [0, 1].
_LEAST_GREY = {"Linf": 0.2, "L2": 5.0, "L1": 100.0}


@explain_wrong_calls
@dataclass(frozen=True, init=False)
class ThreatModel:
    """Set of inputs x' that an adversary may use instead of x: a ball around x, cut by a box.

    The set holds all x' with ``||x' - x||_norm <= eps`` and ``low <= x' <= high``.

    Args:
        norm: norm of the ball: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius in input units, >= 0: a number, or a fraction as a string such as ``"8/255"``.
        low: smallest legal input value; -inf for no lower bound.
        high: largest legal input value; inf for no upper bound.

    Raises:
        ValueError: if the norm is unknown, eps is not a finite number >= 0, a bound is not a
            single number, or low >= high. Also if an Linf radius is wider than the whole box (8
            where "8/255" was meant), or if the radius is too small for a box of grey levels, 255
            wide (8/255 where 8 was meant).

    >>> ThreatModel("Linf", eps="8/255").eps
    0.03137254901960784
    """

    norm: Norm
    eps: float
    low: float
    high: float

    # Written by hand, because eps may be given as a string and is stored as a float.
    def __init__(
        self, norm: Norm, eps: float | str, *, low: float = 0.0, high: float = 1.0
    ) -> None:
        if norm not in get_args(Norm):
            raise ValueError(
                f"norm is {norm!r}; legal: {', '.join(get_args(Norm))}{_meant_norm(norm)}."
            )
        low, high = parse_bound("low", low), parse_bound("high", high)
        check_box(low, high)
        radius = parse_eps(eps)
        if high - low == 255 and 0 < radius < _LEAST_GREY[norm]:
            raise ValueError(
                f"eps is {eps!r} in the box [{low:g}, {high:g}], too small for grey levels; eps is "
                f"in input units: give {255 * radius:g} for a radius of {radius:g} in [0, 1]."
            )
        vars(self).update(norm=norm, eps=radius, low=low, high=high)
        self.check_width("eps", eps, radius)

    def __str__(self) -> str:
        box = "" if (self.low, self.high) == (0, 1) else f" in [{self.low:g}, {self.high:g}]"
        return f"{self.norm} eps={self.fraction}{box}"

    @property
    def in_unit_box(self) -> ThreatModel:
        """The threat model for inputs scaled from [low, high] to [0, 1].

        Its radius is eps / (high - low).

        >>> str(ThreatModel("Linf", "16/255", low=-1, high=1).in_unit_box)
        'Linf eps=8/255'
        """
        return ThreatModel(self.norm, self.eps / (self.high - self.low))

    @property
    def fraction(self) -> str:
        """The radius as papers write it, as text.

        In the box [0, 1], the Linf radii 1/255, 2/255, ..., 32/255 are written as fractions. Every
        other radius is written as a decimal number.

        >>> ThreatModel("Linf", 8 / 255).fraction, ThreatModel("L2", 0.5).fraction
        ('8/255', '0.5')
        """
        levels = 255 * self.eps
        # 0.2 is 51/255, but a paper that writes 0.2 does not mean a fraction.
        whole = self.norm == "Linf" and abs(levels - round(levels)) < 1e-9 and 1 <= levels <= 32
        whole = whole and (self.low, self.high) == (0, 1)
        return f"{round(levels)}/255" if whole else f"{self.eps:.6g}"

    def covers(self, other: ThreatModel) -> bool:
        """Return whether this threat model allows every input that ``other`` allows.

        The norms may differ, because ``||d||_inf <= ||d||_2 <= ||d||_1``.

        >>> ThreatModel("Linf", 0.1).covers(ThreatModel("L2", 0.1))
        True
        """
        wider = get_args(Norm).index(self.norm) <= get_args(Norm).index(other.norm)
        inside = self.low <= other.low and other.high <= self.high
        return wider and other.eps <= self.eps and inside

    def norms(self, delta: Tensor) -> Tensor:
        """Return ``||delta||_norm`` of each point, shape [B], for ``delta`` of shape [B, ...]."""
        flat = delta.flatten(1)
        if self.norm == "Linf":
            return flat.abs().amax(1)
        norms: Tensor = flat.norm(p=2 if self.norm == "L2" else 1, dim=1)
        return norms

    def direction(self, grad: Tensor) -> Tensor:
        """Return the direction of steepest ascent of each point, with the shape of ``grad``.

        The direction is sign(grad) for Linf and grad / ``||grad||_2`` for L2. It does not depend on
        the size of the gradient, also for gradients as small as floats get.

        Args:
            grad: gradient by the inputs, shape [B, ...].
        """
        if self.norm == "Linf":
            return grad.sign()
        largest = grad.flatten(1).abs().amax(1)
        # Small gradients are divided by their largest entry first, or their squares would be 0.
        small = (largest > 0) & (largest < _SMALL)
        grad = grad / per_point(torch.where(small, largest, 1.0).to(grad), grad)
        tiny = torch.finfo(grad.dtype).tiny
        return grad * per_point(1 / self.norms(grad).clamp(min=tiny), grad)

    def narrowed(self, x: Tensor, *, reach: float) -> ThreatModel:
        """Return the threat model with a smaller box if its box is too wide for the radius.

        Some attacks scale the box to [0, 1]. If the box has no bounds, or is wider than 1 and more
        than 10,000 radii wide, rounding would lose the radius. In every norm, the values of a point
        of the ball lie at most ``eps`` beyond the smallest and the largest value of ``x``, so a box
        that ends there allows the same adversarial inputs.

        Args:
            x: inputs of finite values, shape [B, ...].
            reach: how far the smaller box goes below the smallest and above the largest value of
                ``x``, in input units, at least eps; 0 counts as 1.
        """
        width = self.high - self.low
        if width <= 1 or (math.isfinite(width) and self.eps >= _FINE * width):
            return self
        least, largest = (float(v) for v in x.aminmax())
        reach = reach or 1.0  # at eps = 0 there is no radius to measure by
        low, high = max(self.low, least - reach), min(self.high, largest + reach)
        return ThreatModel(self.norm, self.eps, low=low, high=high)

    def with_radius(self, eps: float) -> ThreatModel:
        """Return a copy of the threat model with the radius ``eps``, in input units.

        Objectives whose eps grows during training use it. Unlike the constructor, it does not
        compare the radius with the width of the box.
        """
        found = copy.copy(self)
        object.__setattr__(found, "eps", float(eps))
        return found

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Project each point of ``x_adv`` onto the inputs that are allowed instead of ``x``.

        The result has the shape [B, ...]. For Linf it is the nearest allowed point. For L2 and L1
        the points are projected onto the ball first and onto the box second, as attacks do. The
        second step keeps a point in the ball: it only moves the point nearer to ``x``, which lies
        inside the box.

        Args:
            x_adv: points to project, shape [B, ...].
            x: centres of the balls, shape [B, ...].
        """
        delta = x_adv - x
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "L1":
            delta = project_on_l1_ball(delta.flatten(1), self.eps).view_as(delta)
        else:
            delta = delta * per_point(self.eps / self.norms(delta).clamp(min=1e-12), x).clamp(max=1)
        return (x + delta).clamp(self.low, self.high)

    def check_width(self, name: str, given: object, length: float) -> None:
        """Raise a ValueError if a length in Linf is more than the width of the whole box.

        Such a length was probably meant in grey levels, 8 where "8/255" is right.

        Args:
            name: name of the argument that holds the length, for the error message.
            given: the value of the argument as the user gave it.
            length: the length in input units.
        """
        if self.norm == "Linf" and length > self.high - self.low:
            raise ValueError(
                f"{name} is {given!r}, more than the whole box [{self.low:g}, {self.high:g}] is "
                f'wide; {name} is in input units, such as "8/255".'
            )

    def check_inputs(self, x: Tensor) -> None:
        """Raise an error unless ``x``, a batch of inputs, holds floats within [low, high].

        Raises:
            TypeError: if ``x`` is not a tensor.
            ValueError: if ``x`` does not hold floats, is empty, or has values that are not finite
                or outside of [low, high].
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs are a {type(x).__name__}; give a tensor.")
        if not x.is_floating_point():
            raise ValueError(
                f"inputs have dtype {x.dtype}; give floats in [{self.low:g}, {self.high:g}], such "
                "as x.float() / 255 of images of bytes."
            )
        if x.numel() == 0:
            raise ValueError(f"inputs have shape {tuple(x.shape)}; the batch is empty.")
        low, high = (float(v) for v in x.detach().aminmax())
        finite = math.isfinite(low) and math.isfinite(high)  # the range itself may be unbounded
        if not (finite and self.low - TOLERANCE <= low and high <= self.high + TOLERANCE):
            raise ValueError(
                f"inputs span [{low:g}, {high:g}], outside the threat model's "
                f"[{self.low:g}, {self.high:g}]; normalise inside the model (Normalize), or give "
                "ThreatModel(low=..., high=...)."
            )

    def check_result(self, x_adv: Tensor, x: Tensor) -> None:
        """Check what an attack returned: it must be finite, in the box and in the ball.

        Small differences, as by rounding, are allowed.

        Args:
            x_adv: result of the attack.
            x: clean inputs, shape [B, ...].

        Raises:
            ValueError: if ``x_adv`` differs in shape from ``x``, or has a value that is not finite
                or lies outside [low, high], or a point farther than eps from its clean input.
        """
        if x_adv.shape != x.shape:
            raise ValueError(
                f"the attack returned shape {tuple(x_adv.shape)} for inputs of {tuple(x.shape)}; "
                "legal: adversarial inputs of the same shape."
            )
        lost = int((~x_adv.flatten(1).isfinite()).any(1).sum())
        if lost:
            raise ValueError(
                f"the attack returned NaN or infinite values for {lost} of {len(x)} points; legal: "
                f"finite values in [{self.low:g}, {self.high:g}]."
            )
        low, high = (float(v) for v in x_adv.aminmax())
        if not (self.low - TOLERANCE <= low and high <= self.high + TOLERANCE):
            raise ValueError(
                f"the attack returned values from {low:g} to {high:g}, outside the threat model's "
                f"[{self.low:g}, {self.high:g}]."
            )
        farthest = float(self.norms(x_adv.double() - x.double()).max())
        # An attack cannot be more exact than the rounding of its inputs' dtype.
        largest = float(x.abs().max()) + self.eps
        slack = max(TOLERANCE, torch.finfo(x.dtype).eps * largest)
        if not farthest <= self.eps * (1 + TOLERANCE) + slack:
            raise ValueError(
                f"the attack moved a point by {farthest:g} in {self.norm}, beyond "
                f"eps = {self.eps:g}; give the attack the same eps, norm and bounds."
            )


def _meant_norm(norm: object) -> str:
    """Return ``"; give 'Linf'"`` for another spelling of this norm, and so on; else ""."""
    spelled = str(norm).lower().strip().removeprefix("l").strip("-_ ")
    meant = {"inf": "Linf", "infty": "Linf", "infinity": "Linf", "2": "L2", "1": "L1"}.get(spelled)
    return f"; give {meant!r}" if meant else ""


def check_threat(threat: object) -> ThreatModel:
    """Return ``threat``, or raise a TypeError if it is not a ThreatModel."""
    if isinstance(getattr(threat, "threat", None), ThreatModel):
        raise TypeError(
            f"threat is a {type(threat).__name__}; give a ThreatModel, the one that it was made "
            "with."
        )
    if not isinstance(threat, ThreatModel):
        raise TypeError(
            f'threat is {threat!r}; give a ThreatModel, as ThreatModel("Linf", "8/255").'
        )
    return threat


def per_point(values: Tensor, like: Tensor) -> Tensor:
    """Return a view of ``values`` [B] as [B, 1, ...], which broadcasts over ``like`` [B, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
