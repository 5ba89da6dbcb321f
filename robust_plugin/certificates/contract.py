"""The types that certifiers share: bounds, certifiers, provers and verdicts.

A bounding method computes lower bounds of margins, a prover is a certifier that also returns those
bounds, and a verdict is what is known about one point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from robust_plugin.threat.model import ThreatModel

# bounds(model, x, y, threat) returns lower bounds of the margins f_y - f_j over the threat model;
# shape [B, classes], zero at j = y.
Bounds = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]


# certifier(model, x, y) returns which points it has proved: a bool tensor of shape [B].
Certifier = Callable[[nn.Module, Tensor, Tensor], Tensor]

# verified: a proof holds; falsified: an attack found a counterexample; misclassified: the
# prediction for the clean input is wrong; unknown: neither proof nor counterexample.
Verdict = Literal["verified", "falsified", "misclassified", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("verified", "falsified", "misclassified", "unknown")
# The code of each verdict in tensors: its place in VERDICTS.
VERIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN = range(4)


def counted(words: Sequence[str]) -> dict[str, int]:
    """Return the number of points per verdict, in the order of ``VERDICTS``.

    Args:
        words: one verdict per point, with or without the name of the method that decided, such as
            ``"verified by IBP"`` or ``"unknown"``.

    >>> counted(["unknown", "verified by IBP", "unknown"])
    {'verified by IBP': 1, 'unknown': 2}
    """
    counts = Counter(words)
    return {
        each: counts[each] for verdict in VERDICTS for each in counts if each.startswith(verdict)
    }


@runtime_checkable
class Prover(Protocol):
    """A certifier that also returns its margins, such as ``IBP`` or the adapter's ``LiRPA``."""

    @property
    def threat(self) -> ThreatModel:
        """The threat model that the proofs cover: norm, eps and input bounds."""

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of the margins f_y - f_j; shape [B, classes]."""
