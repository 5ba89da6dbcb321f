"""Which points of a batch are not fooled yet: no adversarial input is known for them.

``Survivors`` tracks these points, and computes the network for them alone. ``AttackRun`` is the
base class of what an attack stores about each of them, such as its current iterate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robust_plugin.threat.model import ThreatModel


class AllFooled(Exception):
    """Raised when all points of the batch are fooled, so that the running attack stops."""


@dataclass
class AttackRun:
    """What APGD, FAB or Square stores about the R points that it attacks and has not fooled yet.

    Every field, also of a subclass, is a tensor of shape [R, ...] whose first axis is the point.

    Attributes:
        rows: indices of the points in the batch, shape [R].
        x: clean inputs, shape [R, ...].
    """

    rows: Tensor
    x: Tensor

    def keep_only(self, places: Tensor | None) -> None:
        """Keep the given points in every field, and drop all others.

        Args:
            places: indices of the points to keep, in [0, R); None keeps all.
        """
        if places is not None:
            for each in fields(self):
                setattr(self, each.name, getattr(self, each.name)[places])


class Survivors:
    """One batch under attack: which points are not fooled yet, and what fooled the others.

    APGD, FAB and Square work on the points that are not fooled yet, and pass what they find to
    ``keep``. An attack of another library asks for the logits of the same points again and again,
    long after most of them are fooled. It gets this object in place of the network: for a fooled
    point it returns the logits that the point was fooled with, as constants, and it computes only
    the other points.

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
        """Return the indices in the batch of the points that are not fooled yet, shape [R].

        Call it at the start of each attack: ``predict`` expects inputs of these points from then.

        Raises:
            AllFooled: if there is no such point.
        """
        self._rows = self.robust.nonzero().flatten()
        if len(self._rows) == 0:
            raise AllFooled
        return self._rows

    def keep(self, rows: Tensor, points: Tensor, logits: Tensor) -> Tensor | None:
        """Store the given inputs that are misclassified and lie within the ball.

        Args:
            rows: indices in the batch of the points that the inputs belong to, shape [R]. A point
                that is fooled already keeps its stored input.
            points: one input per index in ``rows``, shape [R, ...].
            logits: logits of ``points``, shape [R, classes].

        Returns:
            Tensor: indices into ``rows`` of the points that are not fooled yet. None means that
            there is nothing new: each input belongs to a fooled point or is classified correctly.

        Raises:
            AllFooled: if this call stores an input, and all points of ``rows`` are fooled then.
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
        """Return the logits of one input per attacked point, shape [R, classes].

        The logits of a point that is fooled by now are those of the last call before, as constants;
        the others are computed, and can be differentiated. If there are not R inputs, the logits of
        all are computed.

        Args:
            points: inputs, shape [R, ...], of the R points that the last ``rest`` returned, or of
                the whole batch before the first.
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
        """Return the logits of ``predict``, and store the inputs that are adversarial.

        Args:
            points: inputs, as for ``predict``.

        Raises:
            AllFooled: as soon as all points that the last ``rest`` returned are fooled.
        """
        logits = self.predict(points)
        self.keep(self._rows, points.detach(), logits.detach())
        return logits
