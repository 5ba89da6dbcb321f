"""The points of a batch that still stand, and a network that computes no others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_plugin.threat import ThreatModel


class AllFooled(Exception):
    """No point of the batch stands; whatever attack is running may stop."""


class Standing:
    """A network as an attack on one batch sees it; keeps the first adversarial inputs it meets.

    An attack asks for the logits of the same rows again and again, long after most are fooled. Rows
    that are fooled get the logits they were fooled with, as constants; the others are computed.

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
        self.keep(points, logits)
        return logits

    def keep(self, points: Tensor, logits: Tensor) -> None:
        """Keep those of the run's points that are misclassified and within the ball."""
        rows, found = self._rows, points.detach()
        wrong = (logits.detach().argmax(1) != self.y[rows]) & self.robust[rows]
        wrong &= self.threat.norms(found - self.x[rows]) <= self.threat.eps * (1 + 1e-6)
        fooled = rows[wrong]
        self.x_adv[fooled] = found[wrong]
        self.robust[fooled] = False
        if not bool(self.robust[rows].any()):
            raise AllFooled
