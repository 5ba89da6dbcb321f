"""Proofs that no input of the threat model changes the prediction.

Start with ``contract.py``: it defines bounds, provers, certifiers and verdicts.

- Interval bounds: ``ibp.py`` has the certifier. ``propagation.py`` propagates intervals through the
  network with the rule of each layer in ``rules.py`` and of each function in ``operations.py``;
  ``intervals.py`` has the intervals. ``batch_norm.py`` records the BatchNorm statistics that bounds
  use in training.
- Several methods one after another: ``verification.py`` has ``verify``, which runs provers and
  attacks in a given order. ``batch.py`` has the state of one batch of its points. ``verifier.py``
  makes a ``verify`` call usable as a certifier for ``evaluate``.
- Randomized smoothing: ``smoothing.py`` certifies by the network's votes under noise, ``radii.py``
  has the class of the results.
- ``checks.py`` raises an error for unsound bounds; ``plain_copy.py`` makes a copy without masks for
  auto-LiRPA.

Not here: linear relaxations (``adapters/auto_lirpa``), training by bounds (``objectives``).

Uses: attacks, copies, masks, threat, runtime, stats.
Used by: objectives, evaluation.
"""

from robust_plugin.certificates.contract import (
    Bounds,
    Certifier,
    Prover,
)
from robust_plugin.certificates.ibp import (
    IBP,
    ibp_margins,
)
from robust_plugin.certificates.radii import (
    Certificates,
)
from robust_plugin.certificates.smoothing import (
    Smoothed,
)
from robust_plugin.certificates.verification import (
    Verification,
    verify,
)
from robust_plugin.certificates.verifier import (
    Verifier,
)

__all__ = [
    "Bounds",
    "Certifier",
    "Prover",
    "IBP",
    "ibp_margins",
    "Certificates",
    "Smoothed",
    "Verification",
    "verify",
    "Verifier",
]


def __dir__() -> list[str]:
    return sorted(__all__)
