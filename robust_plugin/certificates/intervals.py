"""Sets of values as centre and radius, and how linear, monotone and other maps change them.

A linear layer maps centre c and radius r to W c + b and ``|W| r``. A non-decreasing activation maps
the two ends of the interval (Gowal et al. 2018, section 3). The radius form is used because it has
a valid subgradient at weights that are pruned to exactly zero; products with clamp(W, min=0) have
none there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# apply(v, weight, bias): a map that is linear in v and in the weight, such as F.linear.
LinearMap = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Interval:
    """The set of all values v with ``|v - centre| <= radius``, entry by entry.

    Attributes:
        centre: midpoint of each entry, shape [B, ...].
        radius: half the width of each entry, not negative, shape [B, ...].
    """

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """Return the interval from ``lower`` to ``upper``, entry by entry."""
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
        """Return an interval that contains the set, here the set itself."""
        return self

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Interval:
        """Return the set of scale * v + shift, entry by entry."""
        centre = self.centre * scale + shift
        radius = self.radius * (abs(scale) if isinstance(scale, float) else scale.abs())
        return Interval(centre, radius.expand_as(centre))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return the set of apply(v, weight, bias), which is linear in v and in the weight."""
        return Interval(apply(self.centre, weight, bias), apply(self.radius, weight.abs(), None))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v) for a linear map without negative weights (a mean)."""
        return Interval(apply(self.centre), apply(self.radius))

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v) for a non-decreasing map, such as ReLU or a maximum."""
        return Interval.between(apply(self.lower), apply(self.upper))

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v), which only changes the shape, such as flatten."""
        return Interval(apply(self.centre), apply(self.radius))


@dataclass(frozen=True)
class Ball:
    """The points {centre + reach * u, ``||u||_2 <= 1``} of an L2 ball that lie in a box.

    Affine maps and reshapes keep the ball. The first linear layer uses it: the output of row w has
    radius ``||reach * w||_2``. Every other layer uses the box alone.

    Attributes:
        centre: midpoint of the ball, shape [B, ...].
        reach: radius of the ball along each entry, shape [1, ...]; eps everywhere at the input.
        inside: the box, an interval that contains the set.
    """

    centre: Tensor
    reach: Tensor
    inside: Interval

    def box(self) -> Interval:
        """Return an interval that contains the set."""
        return self.inside

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Ball:
        """Return the set of scale * v + shift, entry by entry."""
        centre = self.centre * scale + shift
        reach = (self.reach * scale).expand_as(centre[:1])
        return Ball(centre, reach, self.inside.affine(scale, shift))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return the set of apply(v, weight, bias); each end is the tighter of ball and box."""
        squares = apply(self.reach.square(), weight.square(), None)
        # The square root has no gradient at 0, where all weights of a row are pruned.
        radius = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        centre, box = apply(self.centre, weight, bias), self.inside.linear(apply, weight, bias)
        lower, upper = centre - radius, centre + radius
        return Interval.between(torch.maximum(lower, box.lower), torch.minimum(upper, box.upper))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v) for a linear map without negative weights."""
        return self.inside.nonnegative(apply)

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v) for a non-decreasing map."""
        return self.inside.rising(apply)

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Ball:
        """Return the set of apply(v), which only changes the shape, such as flatten."""
        return Ball(apply(self.centre), apply(self.reach), self.inside.reshaped(apply))


# A set of values at a node of a network.
Bounded = Interval | Ball
