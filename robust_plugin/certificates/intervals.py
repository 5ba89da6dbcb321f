"""Sets of inputs in centre and radius form, and what maps of a few kinds make of them.

A linear layer maps centre c and radius r to W c + b and |W| r, a rising activation maps the ends of
the interval (Gowal et al. 2018, section 3). The radius form has a valid subgradient at weights that
are pruned to exactly zero, which products with clamp(W, min=0) do not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LinearMap = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Interval:
    """All values v with |v - centre| <= radius, entry by entry.

    Attributes:
        centre: shape [B, ...].
        radius: the same shape, not negative.
    """

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """Return the interval with these ends."""
        return cls((upper + lower) / 2, (upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """The lower ends."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """The upper ends."""
        return self.centre + self.radius

    def box(self) -> Interval:
        """Return an interval that holds the set: this one."""
        return self

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Interval:
        """Return scale v + shift, entry by entry."""
        centre = self.centre * scale + shift
        radius = self.radius * (abs(scale) if isinstance(scale, float) else scale.abs())
        return Interval(centre, radius.expand_as(centre))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return apply(v, weight, bias) for a map that is linear in v and in the weight."""
        return Interval(apply(self.centre, weight, bias), apply(self.radius, weight.abs(), None))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return apply(v) for a linear map without negative weights, such as a mean."""
        return Interval(apply(self.centre), apply(self.radius))

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return apply(v) for a map that falls nowhere, such as ReLU or a maximum."""
        return Interval.between(apply(self.lower), apply(self.upper))

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the entries in another shape."""
        return Interval(apply(self.centre), apply(self.radius))


@dataclass(frozen=True)
class Ball:
    """An L2 ball, cut by a box: {centre + reach * u, ||u||_2 <= 1} within ``inside``.

    Only the first linear layer can use it: row w has radius ||reach * w||_2 there. Any other
    layer but an affine one sees the box alone.

    Attributes:
        centre: shape [B, ...].
        reach: eps in every entry at first; broadcasts over the batch.
        inside: an interval that holds the set.
    """

    centre: Tensor
    reach: Tensor
    inside: Interval

    def box(self) -> Interval:
        """Return an interval that holds the set."""
        return self.inside

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Ball:
        """Return scale v + shift, entry by entry."""
        centre = self.centre * scale + shift
        reach = (self.reach * scale).expand_as(centre[:1])
        return Ball(centre, reach, self.inside.affine(scale, shift))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return apply(v, weight, bias), the tighter of ball and box at each end."""
        squares = apply(self.reach.square(), weight.square(), None)
        # The square root has no gradient at 0, where all weights of a row are pruned.
        radius = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        centre, box = apply(self.centre, weight, bias), self.inside.linear(apply, weight, bias)
        lower, upper = centre - radius, centre + radius
        return Interval.between(torch.maximum(lower, box.lower), torch.minimum(upper, box.upper))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return apply(v) for a linear map without negative weights."""
        return self.inside.nonnegative(apply)

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return apply(v) for a map that falls nowhere."""
        return self.inside.rising(apply)

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Ball:
        """Return the entries in another shape."""
        return Ball(apply(self.centre), apply(self.reach), self.inside.reshaped(apply))


Bounded = Interval | Ball
