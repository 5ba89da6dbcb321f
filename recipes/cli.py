"""The command line, ``robust-plugin COMMAND``: which command runs, and what its exit status is."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence

import torch

from robust_plugin.recipes.commands import COMMANDS
from robust_plugin.recipes.config.help_tables import USAGE
from robust_plugin.recipes.runtime.did_you_mean import did_you_mean, nearest
from robust_plugin.recipes.runtime.folder_lock import FolderInUse
from robust_plugin.recipes.runtime.progress import hide_progress
from robust_plugin.recipes.runtime.workers import keep_freed_memory
from robust_plugin.recipes.training.loop import Diverged
from robust_plugin.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the words after ``robust-plugin``; None for those of this process.

    Returns:
        int: 0 after success, 1 after an error, 2 for a command, option or value that is not legal,
        130 after Ctrl-C, and 141 if the reader of the output has closed it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _main(words)
        finally:
            hide_progress(False)
            sys.stdout.flush()  # here, since an error at exit could not be caught
    except BrokenPipeError:
        # The reader of the output has closed it, as head does. The rest of the buffer is written
        # at exit and needs a place to go to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, the status of other commands in this case


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        print(USAGE, end="")
        return 0
    if words[0] in ("--version", "-V"):
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        print(f"robust-plugin {__version__}, {versions}")
        return 0
    keep_freed_memory()
    try:
        if words[0] not in COMMANDS:
            meant = did_you_mean(nearest(words[0], COMMANDS))
            raise ValueError(
                f"unknown command {words[0]!r}{meant}; the commands are {', '.join(COMMANDS)}, and "
                "robust-plugin --help describes them."
            )
        COMMANDS[words[0]](words[0], words[1:])
    except KeyboardInterrupt as stop:
        said = str(stop) or f"Interrupted.{_how_to_continue(words)}"
        print(f"\n{said}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).partition("\n")[0]
        return _failed(f"{first} Give smaller batch sizes, or --device cpu.", 1)
    except (Diverged, FolderInUse, ImportError, OSError) as error:
        return _failed(error, 1)
    except (ValueError, TypeError) as error:
        return _failed(error, 2)
    return 0


def _failed(error: Exception | str, status: int) -> int:
    """Print an error as one sentence, and return the exit status."""
    rank = int(os.environ.get("RANK", "0"))
    print(f"error{f' in process {rank}' if rank else ''}: {error}", file=sys.stderr)
    return status


def _how_to_continue(words: Sequence[str]) -> str:
    """Return the sentence that says how an interrupted command is continued, if it can be."""
    if words[0] in ("list", "channels") or "--dry-run" in words:
        return ""
    return f" To continue, give the same command again: robust-plugin {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
