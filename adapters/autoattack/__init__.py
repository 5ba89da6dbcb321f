"""AutoAttack (Croce and Hein 2020), the ensemble of attacks that is standard for robust accuracy.

The component attacks and their parameters are those of the library ``pyautoattack``, or of the
GitHub package ``autoattack``. In Linf and L2 the implementations of this package run (apgd.py,
fab.py and square.py in ``robust_plugin/attacks``): they take the same steps from the same noise and
leave out points that are already fooled. In L1, and for networks that are random on purpose, the
library's implementations run. The results equal the library's.

Start with ``attack.py``: ``AutoAttack`` is the attack. ``component.py`` runs one component on one
batch, ``library.py`` imports the library.
"""

from robust_plugin.adapters.autoattack.attack import (
    AutoAttack,
    Version,
)

__all__ = ["AutoAttack", "Version"]


def __dir__() -> list[str]:
    return sorted(__all__)
