"""Copies of a network that compute the same outputs, and checks that they do.

Start with ``fast.py``: ``fast_copy`` makes the copy that attacks run on. ``convolutions.py`` has
layers that compute convolutions faster on a CPU, ``deep_copy.py`` makes deep copies,
``agreement.py`` compares the outputs and gradients of two networks, ``tracing.py`` raises an
error where a trace would lose a custom backward pass.

Not here: the copy that bounds are computed on (``certificates/plain_copy.py``).

Uses: masks, runtime.
Used by: channels, attacks, certificates, export.
"""

from robust_plugin.copies.fast import (
    fast_copy,
)

__all__ = ["fast_copy"]


def __dir__() -> list[str]:
    return sorted(__all__)
