"""Proofs that no input of the threat model changes the prediction.

Start with ``contract.py``: it defines bounds, provers, certifiers and verdicts.

- Interval bounds: ``ibp.py`` is the certifier. ``propagation.py`` walks through the network,
  ``rules.py`` has the rule of each layer and ``operations.py`` that of each function,
  ``intervals.py`` the sets of values, ``batch_norm.py`` the BatchNorm statistics that training by
  bounds uses.
- Several methods in a row: ``verification.py`` is ``verify``, which runs provers and attacks one
  after another. ``batch.py`` is one batch of its points. ``verifier.py`` wraps a ``verify`` call as
  one certifier for ``evaluate``.
- Randomized smoothing: ``smoothing.py`` certifies by votes under noise, ``radii.py`` is its result.
- ``checks.py`` refuses unsound bounds; ``plain_copy.py`` makes an unmasked copy for auto-LiRPA.

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
