"""Attacks: the contract that every attack must keep, and the attacks of this package.

Start with ``contract.py``: an attack is ``attack(model, x, y) -> x_adv``, and ``guarded`` checks
its arguments and its result. ``logits.py`` checks a network's outputs and labels, ``losses.py`` has
the losses that attacks ascend, ``projected_gradient.py`` is PGD; ``apgd.py``, ``fab.py`` and
``square.py`` are the attacks of AutoAttack, ``cascade.py`` runs attacks one after the other,
``survivors.py`` tracks which points of a batch are not fooled yet, ``minimum_norm.py`` searches for
the nearest adversarial input of each point.

Not here: attacks of other libraries (``adapters``), reports on attacks (``evaluation``).

Uses: threat, copies, masks, runtime.
Used by: certificates, objectives, evaluation.
"""

from robust_plugin.attacks.contract import (
    Attack,
    NotFiniteGradient,
    SuspectNetwork,
    guarded,
)
from robust_plugin.attacks.minimum_norm import (
    MinimumNorm,
)
from robust_plugin.attacks.projected_gradient import (
    PGD,
    pgd,
)

__all__ = ["Attack", "NotFiniteGradient", "SuspectNetwork", "guarded", "MinimumNorm", "PGD", "pgd"]


def __dir__() -> list[str]:
    return sorted(__all__)
