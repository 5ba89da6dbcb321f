"""Linear relaxation bounds by auto-LiRPA, checked on each network before their first use.

Start with ``certifier.py``: ``LiRPA`` is the certifier. ``module.py`` builds the library's
BoundedModule and updates it from the network, ``shims.py`` supplies what the library needs and
newer releases of torch and NumPy lack.
"""

from robust_plugin.adapters.auto_lirpa.certifier import (
    LiRPA,
    Method,
    proof_methods,
)

__all__ = ["LiRPA", "Method", "proof_methods"]


def __dir__() -> list[str]:
    return sorted(__all__)
