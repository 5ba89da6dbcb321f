"""Processes, workers, progress and versions.

``process_group.py`` starts a group of processes and chooses the device, ``workers.py`` runs
jobs side by side, ``progress.py`` shows what is being computed, ``library_versions.py`` says
which libraries did it, ``weight_files.py`` refuses files that hold no weights.

Uses: the core only. Used by: all rooms of the recipes.
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
