"""Files, journals, random numbers and processes: what every other room needs to run.

``files.py`` writes files whole or not at all, ``journal.py`` lets long computations resume,
``description.py`` fingerprints the settings of a computation, ``random.py`` draws random numbers
that do not depend on how a batch is split, ``contexts.py`` switches precision and modes,
``distributed.py`` knows about several processes, ``timing.py`` compares two functions' speed.

Not here: anything about pruning, attacks or proofs.

Uses: torch only.
Used by: all rooms but ``threat``.
"""

from robust_plugin.runtime.journal import (
    Fingerprint,
    Journal,
)

__all__ = ["Fingerprint", "Journal"]
