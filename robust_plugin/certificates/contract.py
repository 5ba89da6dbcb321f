"""Interval bound propagation (IBP): margins that hold for every input of the threat model.

Sound or absent: a layer or an operation without a rule raises. Differentiable: through masks that
are live, the gradient reaches weights, scores and rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from robust_plugin.threat.model import ThreatModel

# bounds(model, x, y, threat): lower bounds of f_y - f_j, shape [B, classes], zero at j = y.
Bounds = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]


# A certifier returns which points it has proved: a bool tensor of shape [B].
Certifier = Callable[[nn.Module, Tensor, Tensor], Tensor]


Verdict = Literal["verified", "falsified", "misclassified", "unknown"]


VERDICTS: tuple[Verdict, ...] = ("verified", "falsified", "misclassified", "unknown")


VERIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN = range(4)


def counted(words: Sequence[str]) -> dict[str, int]:
    """Return how many points each verdict has, in the order of ``VERDICTS``.

    >>> counted(["unknown", "verified by IBP", "unknown"])
    {'verified by IBP': 1, 'unknown': 2}
    """
    counts = Counter(words)
    return {
        each: counts[each] for verdict in VERDICTS for each in counts if each.startswith(verdict)
    }


@runtime_checkable
class Prover(Protocol):
    """A certifier that tells its margins: ``IBP``, or ``LiRPA`` of the adapter."""

    @property
    def threat(self) -> ThreatModel:
        """Norm, eps and bounds of the proofs."""

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of f_y - f_j; shape [B, classes]."""
