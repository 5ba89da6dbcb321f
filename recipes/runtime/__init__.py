"""Processes, devices, progress, locks of folders, library versions and checks of weight files.

``process_group.py`` joins the processes that torchrun started and chooses the device.
``workers.py`` runs a function for many arguments in parallel worker processes.
``progress.py`` shows progress, as bars or as lines, and estimates the time left.
``folder_lock.py`` keeps two commands from writing to one folder.
``did_you_mean.py`` names what was probably meant, for error messages.
``library_versions.py`` returns the versions of the libraries that compute the results.
``weight_files.py`` refuses files that cannot hold weights.
``own_code.py`` calls functions of the user, which options name.

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
    RunProgress,
)

__all__ = ["is_first", "processes", "wait_for_all", "RunProgress", "versions"]
