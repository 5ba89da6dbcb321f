"""Processes, devices, progress bars, library versions and checks of weight files.

``process_group.py`` joins the processes that torchrun started and chooses the device.
``workers.py`` runs a function for many arguments in parallel worker processes.
``progress.py`` shows progress bars and estimates the time left.
``library_versions.py`` returns the versions of the libraries that compute the results.
``weight_files.py`` refuses files that cannot hold weights.

Uses: the core only.
Used by: all rooms of the recipes.
"""

from robust_plugin.recipes.runtime.library_versions import (
    versions,
)
from robust_plugin.recipes.runtime.process_group import (
    is_first,
    processes,
    wait_for_all,
)
from robust_plugin.recipes.runtime.progress import (
    Progress,
)

__all__ = ["is_first", "processes", "wait_for_all", "Progress", "versions"]
