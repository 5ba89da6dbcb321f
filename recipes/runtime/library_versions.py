"""The versions of what a figure was computed with."""

from __future__ import annotations

from importlib import metadata

import torch

from robust_plugin.version import __version__

# Distributions that attack, prove or cut; their own code is not imported for this.
_LIBRARIES = ("pyautoattack", "autoattack", "torchattacks", "auto-LiRPA", "torch-pruning")


def versions() -> dict[str, str]:
    """Return the versions of torch, robust_plugin and the libraries that are installed, by name."""
    found = {"torch": str(torch.__version__), "robust_plugin": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
