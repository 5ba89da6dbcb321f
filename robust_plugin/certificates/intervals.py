"""Sets of values as centre and radius, and how linear, monotone and other maps change them.

A linear layer maps centre c and radius r to W c + b and ``|W| r``. A non-decreasing activation maps
the two ends of the interval (Gowal et al. 2018, section 3). Centre and radius are used instead of
products of the two ends with clamp(W, min=0) and clamp(W, max=0), because autograd gives ``|W|`` a
valid subgradient at weights that are pruned to exactly zero, and gives these products none.
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
    """The set of all tensors v with ``|v - centre| <= radius``, elementwise.

    Attributes:
        centre: midpoints, shape [B, ...].
        radius: half the widths, not negative, shape [B, ...].
    """

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """Return the interval from ``lower`` to ``upper``, elementwise."""
        return cls((upper + lower) / 2, (upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """The lower ends, shape [B, ...]."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """The upper ends, shape [B, ...]."""
        return self.centre + self.radius

    def box(self) -> Interval:
        """Return an interval that contains the set: here the set itself."""
        return self

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Interval:
        """Return the set of scale * v + shift for all v of this set, elementwise."""
        centre = self.centre * scale + shift
        radius = self.radius * (abs(scale) if isinstance(scale, float) else scale.abs())
        return Interval(centre, radius.expand_as(centre))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return an interval that contains apply(v, weight, bias) for all v of this set.

        Args:
            apply: a map such as ``F.linear``, linear in v and in the weight.
            weight: the map's weight.
            bias: the map's bias, or None.
        """
        return Interval(apply(self.centre, weight, bias), apply(self.radius, weight.abs(), None))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return an interval that contains apply(v) for all v of this set.

        Args:
            apply: a linear map without negative weights, such as average pooling.
        """
        return Interval(apply(self.centre), apply(self.radius))

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return an interval that contains apply(v) for all v of this set.

        Args:
            apply: a map that is non-decreasing in every input, such as ReLU or max pooling.
        """
        return Interval.between(apply(self.lower), apply(self.upper))

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return the set of apply(v) for all v of this set.

        Args:
            apply: a map that only changes the shape, such as flatten.
        """
        return Interval(apply(self.centre), apply(self.radius))


@dataclass(frozen=True)
class Ball:
    """The part of an L2 ball that lies in a box.

    Its values are centre + reach * u with ``||u||_2 <= 1`` that also lie in ``inside``.

    Elementwise affine maps and reshapes give a Ball again. A linear map gives an Interval, in which
    the output of weight row w has at most the radius ``||reach * w||_2``. All other maps use the
    box alone.

    Attributes:
        centre: midpoint of the ball, shape [B, ...].
        reach: radius of the ball along each coordinate, shape [1, ...]; at the network's input it
            is eps everywhere, and affine maps scale it.
        inside: the box, an interval that contains the set.
    """

    centre: Tensor
    reach: Tensor
    inside: Interval

    def box(self) -> Interval:
        """Return an interval that contains the set."""
        return self.inside

    def affine(self, scale: Tensor | float, shift: Tensor | float) -> Ball:
        """Return the set of scale * v + shift for all v of this set, elementwise."""
        centre = self.centre * scale + shift
        reach = (self.reach * scale).expand_as(centre[:1])
        return Ball(centre, reach, self.inside.affine(scale, shift))

    def linear(self, apply: LinearMap, weight: Tensor, bias: Tensor | None) -> Interval:
        """Return an interval that contains apply(v, weight, bias) for all v of this set.

        Each end is the tighter one of the ends for the ball and for the box.

        Args:
            apply: a map such as ``F.linear``, linear in v and in the weight.
            weight: the map's weight.
            bias: the map's bias, or None.
        """
        squares = apply(self.reach.square(), weight.square(), None)
        # The square root has no gradient at 0, where all weights of a row are pruned.
        radius = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        centre, box = apply(self.centre, weight, bias), self.inside.linear(apply, weight, bias)
        lower, upper = centre - radius, centre + radius
        return Interval.between(torch.maximum(lower, box.lower), torch.minimum(upper, box.upper))

    def nonnegative(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return an interval that contains apply(v) for all v of this set.

        Args:
            apply: a linear map without negative weights, such as average pooling.
        """
        return self.inside.nonnegative(apply)

    def rising(self, apply: Callable[[Tensor], Tensor]) -> Interval:
        """Return an interval that contains apply(v) for all v of this set.

        Args:
            apply: a map that is non-decreasing in every input, such as ReLU or max pooling.
        """
        return self.inside.rising(apply)

    def reshaped(self, apply: Callable[[Tensor], Tensor]) -> Ball:
        """Return the set of apply(v) for all v of this set.

        Args:
            apply: a map that only changes the shape, such as flatten.
        """
        return Ball(apply(self.centre), apply(self.reach), self.inside.reshaped(apply))


# A set of values at a node of a network.
Bounded = Interval | Ball
