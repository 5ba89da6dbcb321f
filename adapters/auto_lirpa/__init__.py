"""Linear relaxation bounds by auto-LiRPA, checked before they are believed.

Start with ``certifier.py``: ``LiRPA`` is the certifier. ``module.py`` builds the library's module
and keeps it in step with the network, ``shims.py`` works around faults of the library.
"""

from robust_plugin.adapters.auto_lirpa.certifier import (
    LiRPA,
    Method,
    proof_stages,
)

__all__ = ["LiRPA", "Method", "proof_stages"]
