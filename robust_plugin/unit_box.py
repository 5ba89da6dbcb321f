"""Networks and threat models in the unit box [0, 1], which attack libraries take for granted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugin.threat import ThreatModel

# A radius is worth attacking if it is this many times the rounding of the values that it moves.
_ROUNDINGS = 10


class UnitBox(nn.Module):
    """A network for inputs in [0, 1], which attack libraries take for granted.

    Args:
        model: a network for inputs in [low, high].
        threat: its threat model; where its box is very wide or has no bounds, a smaller one is
            scaled to [0, 1] in which the attack can do the same.
        x: all inputs that are attacked, shape [B, ...].
        reach: how far the attack may look beyond the values of ``x``; by default eps.

    Attributes:
        threat: the same ball in the unit box: eps / (high - low).

    Raises:
        ValueError: if eps is so small beside the spread of the values that it would be lost to
            rounding.
    """

    def __init__(
        self, model: nn.Module, threat: ThreatModel, x: Tensor, *, reach: float | None = None
    ) -> None:
        super().__init__()
        given = threat
        threat = threat.narrowed(x, reach=threat.eps if reach is None else reach)
        self.model, self.low, self.width = model, threat.low, threat.high - threat.low
        # Half precision has a finding of its own.
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        scaled = (self.low, self.width) != (0, 1)
        if scaled and 0 < threat.eps < _ROUNDINGS * torch.finfo(dtype).eps * self.width:
            raise ValueError(
                f"the threat model is {given}, and the inputs span {self.width:g}: beside that, "
                f"{dtype} rounds a radius of {given.eps:g} away. Scale the features alike "
                "(each to mean 0 and standard deviation 1, say), or give model.double() and "
                "x.double()."
            )
        self.threat = threat.in_unit_box

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.model(self.grown(x))
        return logits

    def shrunk(self, x: Tensor) -> Tensor:
        """Scale inputs of the network to [0, 1]."""
        return x if (self.low, self.width) == (0, 1) else (x - self.low) / self.width

    def grown(self, x: Tensor) -> Tensor:
        """Scale inputs in [0, 1] to those of the network."""
        return x if (self.low, self.width) == (0, 1) else self.low + self.width * x
