"""Files, journals, random numbers and processes: tools that the other sub-packages use.

``files.py`` writes files atomically, ``journal.py`` lets long computations resume,
``settings_digest.py`` computes digests of attacks and certifiers, ``random.py`` draws random
numbers that do not depend on how a batch is split, ``contexts.py`` switches precision and modes,
``distributed.py`` handles several processes, ``progress.py`` reports how far a computation is,
``timing.py`` compares the speed of two functions, ``tables.py`` prints aligned tables, ``plots.py``
draws bars and curves, ``tolerances.py`` lists how far equal outputs may differ.
``calls.py`` explains wrong arguments of public functions, ``values.py`` checks single arguments.

Not here: anything about pruning, attacks or proofs.

Uses: torch and safetensors only.
Used by: all sub-packages.
"""

from robust_plugin.runtime.journal import (
    Fingerprint,
    Journal,
)
from robust_plugin.runtime.progress import (
    Progress,
)

__all__ = ["Fingerprint", "Journal", "Progress"]


def __dir__() -> list[str]:
    return sorted(__all__)
