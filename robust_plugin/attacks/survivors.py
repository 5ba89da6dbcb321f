"""The points of a batch that still stand, and a network that computes no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robust_plugin.threat.model import ThreatModel


class AllFooled(Exception):
    """No point of the batch stands; whatever attack is running may stop."""


@dataclass
class Run:
    """What an attack of ours knows of each point that stands; all tensors are of shape [R, ...].

    Attributes:
        rows: places in the batch.
        x: clean inputs.
    """

    rows: Tensor
    x: Tensor

    def only(self, places: Tensor | None) -> None:
        """Drop all other rows; None drops none."""
        if places is not None:
            for each in fields(self):
                setattr(self, each.name, getattr(self, each.name)[places])


class Standing:
    """One batch under attack: which of its points stand, and what fooled the others.

    An attack of ours works on the rows that stand and reports to ``keep``. One of a library asks
    for the logits of the same rows again and again, long after most are fooled: it is handed this
    object in place of the network. Rows that are fooled get the logits they were fooled with, as
    constants; the others are computed.

    Args:
        model: a plain network in evaluation mode.
        x: clean inputs, shape [B, ...].
        y: labels, shape [B].
        threat: what counts as adversarial.

    Attributes:
        x_adv: the first adversarial input of each fooled point, the clean one of the others.
        robust: which points stand, shape [B].
        logits: clean, shape [B, classes].
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: ThreatModel
    ) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.x_adv = x.clone()
        # (x + eps) - x is more than eps by rounding, in each coordinate.
        n, rounding = x[0].numel(), torch.finfo(x.dtype).eps
        self._radius = threat.eps + rounding * {"Linf": 1, "L2": n**0.5, "L1": n}[threat.norm]
        with torch.no_grad():
            self.logits = model(x)
        self.robust = self.logits.argmax(1) == y
        self._rows = torch.arange(len(x), device=x.device)
        self._frozen = self.logits

    def rest(self) -> Tensor:
        """Begin a run on the points that stand; return their rows.

        Raises:
            AllFooled: if there is none.
        """
        self._rows = self.robust.nonzero().flatten()
        if len(self._rows) == 0:
            raise AllFooled
        return self._rows

    def keep(self, rows: Tensor, points: Tensor, logits: Tensor) -> Tensor | None:
        """Keep the points that are misclassified and within the ball.

        Args:
            rows: of the batch, shape [R]; a row that is fooled already stays as it is.
            points: one for each of them, shape [R, ...].
            logits: theirs, shape [R, classes].

        Returns:
            Tensor: places among ``rows`` that stand, or None where all still do.

        Raises:
            AllFooled: if none stands any more.
        """
        wrong = ((logits.argmax(1) != self.y[rows]) & self.robust[rows]).nonzero().flatten()
        if len(wrong) == 0:
            return None
        found, fooled = points[wrong], rows[wrong]
        inside = self.threat.norms(found - self.x[fooled]) <= self._radius
        self.x_adv[fooled[inside]] = found[inside]
        self.robust[fooled[inside]] = False
        standing = self.robust[rows]
        if not bool(standing.any()):
            raise AllFooled
        return standing.nonzero().flatten()

    def predict(self, points: Tensor) -> Tensor:
        """Return the logits of the run's points, differentiable; fooled ones as they were.

        Another number of points than the run's is computed as it is.
        """
        live = self.robust[self._rows]
        if len(points) != len(live) or bool(live.all()):
            logits = self.model(points)
        else:
            index = live.nonzero().flatten()
            logits = self._frozen.index_copy(0, index, self.model(points[index]))
        if len(points) == len(live):
            self._frozen = logits.detach()
        return logits

    def __call__(self, points: Tensor) -> Tensor:
        """Like ``predict``, and keep the points that are adversarial.

        Raises:
            AllFooled: if none stands any more.
        """
        logits = self.predict(points)
        self.keep(self._rows, points.detach(), logits.detach())
        return logits
