"""Versions of the libraries that compute a result, to be saved with it."""

from __future__ import annotations

from importlib import metadata

import torch

from robust_plugin.version import __version__

# Distributions of attacks, certifiers and channel removal. Only their metadata is read; they are
# not imported.
_LIBRARIES = ("pyautoattack", "autoattack", "torchattacks", "auto-LiRPA", "torch-pruning")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute the results, by name.

    These are torch, robust_plugin, and those libraries for attacks, proofs and the removal of
    channels that are installed.
    """
    found = {"torch": str(torch.__version__), "robust_plugin": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
