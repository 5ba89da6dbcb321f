"""Proofs that no input of the threat model changes the prediction.

Start with ``contract.py``: what bounds, provers and certifiers are. ``intervals.py``,
``rules.py`` and ``propagation.py`` compute interval bounds layer by layer, ``batch_norm.py``
gives them the statistics of the clean batch, ``ibp.py`` is the certifier made of them,
``checks.py`` refuses unsound bounds, ``verification.py`` runs several provers and attacks
(``batch.py`` holds the points, ``verifier.py`` is the same as a certifier), ``twin.py`` makes an
unmasked copy for auto-LiRPA, ``smoothing.py`` certifies by votes under noise.

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
from robust_plugin.certificates.smoothing import (
    Certificates,
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
