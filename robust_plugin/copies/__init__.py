"""Copies of a network that compute the same outputs, and checks that they do.

Start with ``fast.py``: ``fast_copy`` makes the copy that attacks run on. ``convolutions.py`` has
convolutions that are faster on a CPU, ``copied.py`` makes deep copies, ``agreement.py`` compares
the outputs and gradients of two networks, ``tracing.py`` refuses to trace a network that has a
backward pass of its own.

Not here: the copy that bounds are computed on (``certificates/plain_copy.py``).

Uses: masks, runtime.
Used by: channels, attacks, certificates, export.
"""

from robust_plugin.copies.fast import (
    fast_copy,
)

__all__ = ["fast_copy"]
