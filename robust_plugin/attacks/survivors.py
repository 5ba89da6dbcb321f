"""Which points of a batch an attack has not fooled yet.

``Survivors`` tracks them, and computes the network for them alone. ``AttackRun`` is what one run of
an attack stores about each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robust_plugin.threat.model import ThreatModel


class AllFooled(Exception):
    """All points of the batch are fooled, so that the running attack can stop."""


@dataclass
class AttackRun:
    """What a run of APGD, FAB or Square stores about the points that it has not fooled yet.

    Every field, also of a subclass, is a tensor with one row per such point, shape [R, ...].

    Attributes:
        rows: places of the points in the batch.
        x: clean inputs.
    """

    rows: Tensor
    x: Tensor

    def keep_only(self, places: Tensor | None) -> None:
        """Drop the rows of all other points; None drops no row.

        Args:
            places: indices of the rows to keep, in [0, R).
        """
        if places is not None:
            for each in fields(self):
                setattr(self, each.name, getattr(self, each.name)[places])


class Survivors:
    """One batch under attack: which points are not fooled yet, and what fooled the others.

    The attacks of this package work on the rows that are not fooled yet, and report what they find
    to ``keep``. An attack of a library asks for the logits of the same rows again and again, long
    after most of them are fooled. It gets this object in place of the network: fooled rows return
    the logits that they were fooled with, as constants, and only the others are computed.

    Args:
        model: function that returns logits, such as a network in evaluation mode.
        x: clean inputs, shape [B, ...].
        y: labels, shape [B].
        threat: threat model that adversarial inputs must lie in.

    Attributes:
        x_adv: first adversarial input found for each fooled point, and the clean input of each
            other point, shape [B, ...].
        robust: True for points that are not fooled, shape [B]; False from the start for points
            whose clean input is misclassified.
        logits: logits of the clean inputs, shape [B, classes].
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: ThreatModel
    ) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.x_adv = x.clone()
        # By rounding, (x + eps) - x is more than eps in each coordinate.
        n, rounding = x[0].numel(), torch.finfo(x.dtype).eps
        self._radius = threat.eps + rounding * {"Linf": 1, "L2": n**0.5, "L1": n}[threat.norm]
        with torch.no_grad():
            self.logits = model(x)
        self.robust = self.logits.argmax(1) == y
        self._rows = torch.arange(len(x), device=x.device)
        self._last_logits = self.logits

    def rest(self) -> Tensor:
        """Begin a run on the points that are not fooled yet, and return their rows.

        Raises:
            AllFooled: if there is no such point.
        """
        self._rows = self.robust.nonzero().flatten()
        if len(self._rows) == 0:
            raise AllFooled
        return self._rows

    def keep(self, rows: Tensor, points: Tensor, logits: Tensor) -> Tensor | None:
        """Store the points that are misclassified and lie within the ball.

        Args:
            rows: rows of the batch, shape [R]; what is stored for a fooled row does not change.
            points: one input per row, shape [R, ...].
            logits: logits of ``points``, shape [R, classes].

        Returns:
            Tensor: indices into ``rows`` of the points that are not fooled yet, or None if no
            further point is misclassified.

        Raises:
            AllFooled: if all points of ``rows`` are fooled.
        """
        wrong = ((logits.argmax(1) != self.y[rows]) & self.robust[rows]).nonzero().flatten()
        if len(wrong) == 0:
            return None
        found, fooled = points[wrong], rows[wrong]
        inside = self.threat.norms(found - self.x[fooled]) <= self._radius
        self.x_adv[fooled[inside]] = found[inside]
        self.robust[fooled[inside]] = False
        left = self.robust[rows]
        if not bool(left.any()):
            raise AllFooled
        return left.nonzero().flatten()

    def predict(self, points: Tensor) -> Tensor:
        """Return logits of one input per row of the run, differentiable where they are computed.

        Rows that are fooled by now return their last logits, as constants. If the number of points
        is not that of the run, all points are computed.

        Args:
            points: inputs, shape [R, ...] for the R rows that ``rest`` returned.
        """
        live = self.robust[self._rows]
        if len(points) != len(live) or bool(live.all()):
            logits = self.model(points)
        else:
            index = live.nonzero().flatten()
            logits = self._last_logits.index_copy(0, index, self.model(points[index]))
        if len(points) == len(live):
            self._last_logits = logits.detach()
        return logits

    def __call__(self, points: Tensor) -> Tensor:
        """Return the logits of ``predict``, and store the points that are adversarial.

        Raises:
            AllFooled: if all points of the run are fooled.
        """
        logits = self.predict(points)
        self.keep(self._rows, points.detach(), logits.detach())
        return logits
