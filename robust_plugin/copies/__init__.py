"""Copies of a network that compute the same, and the check that they do.

Start with ``fast.py``: ``fast_copy`` makes the copy that attacks run on. ``convolutions.py`` has
convolutions that are faster on a CPU, ``copied.py`` the deep copy, ``agreement.py`` compares the
outputs and gradients of two networks, ``tracing.py`` refuses to trace custom backward passes.

Not here: the copy that bounds are computed on (``certificates/twin.py``).

Uses: masks, runtime.
Used by: channels, attacks, certificates, export.
"""

from robust_plugin.copies.fast import (
    fast_copy,
)

__all__ = ["fast_copy"]
