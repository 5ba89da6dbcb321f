"""The types that certifiers share: bounds, certifiers, provers and verdicts.

A bounding method computes lower bounds of logit margins. A certifier says which points it has
proved, and a prover is a certifier that also returns the bounds. A verdict says whether a point is
proved, fooled, misclassified or none of these.
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
    """Count the points of each verdict; the result is in the order of ``VERDICTS``.

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
    """A certifier that also returns the bounds that its proofs are based on.

    Examples are ``IBP`` and the ``LiRPA`` of ``adapters/auto_lirpa``.
    """

    @property
    def threat(self) -> ThreatModel:
        """The threat model that the proofs hold for: norm, eps and legal range of inputs."""

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of the logit margins f_y - f_j, shape [B, classes]."""
