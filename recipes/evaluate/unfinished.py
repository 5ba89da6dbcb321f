"""Finished parts of a running evaluation, from which the same command continues after a stop.

The parts are journals (``robust_plugin/runtime/journal.py``): finished batches of AutoAttack, of
cascades of proofs and of randomized smoothing. They lie in a folder ``unfinished-evaluation-...``
until the evaluation has finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.runtime.journal import Fingerprint
from robust_plugin.runtime.random import seed_of

PREFIX = "unfinished-evaluation-"


def unfinished_folder(home: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder for the finished parts of an evaluation.

    Its name has a digest of the identity, so that only the same evaluation continues from it.

    Args:
        home: folder that it lies in.
        identity: all settings of the evaluation, as values for JSON.
    """
    return home / f"{PREFIX}{seed_of(json.dumps(identity)):016x}"


@dataclass
class FinishedParts:
    """Where a running evaluation keeps its finished parts, and what to say if it is interrupted.

    Attributes:
        folder: folder of the parts; None before ``begin``, and if there is no place for them.
        temporary: whether the folder is removed when the evaluation has finished.
        message: what is said at an interruption.
    """

    folder: Path | None = None
    temporary: bool = False
    message: str = "Interrupted before the attacks. The same command begins anew."

    def begin(self, config: EvaluateConfig, out: Path | None, model: nn.Module) -> None:
        """Choose the folder: the setting ``journal``, or one in the folder of ``out`` or the run.

        Args:
            config: settings of the evaluation.
            out: folder or .json file of the reports; None writes none.
            model: network to evaluate; the folder of other weights is another one.
        """
        keeping = _keeping(config)
        if not keeping:
            attacks = ", ".join(config.attacks) or "no attack"
            self.message = (
                f"Interrupted. The same command begins anew: {attacks} and certify "
                f"{config.certify} keep no finished parts."
            )
            return
        home = _home(config, out)
        if config.journal is None and home is None:
            self.message = (
                "Interrupted. The same command begins anew, because there was no folder to keep "
                "finished parts in. With --out FOLDER it would continue."
            )
            return
        self.folder, self.temporary = config.journal, config.journal is None
        if self.temporary and home is not None:
            settings = {"settings": as_plain(config), "out": str(out), "versions": versions()}
            self.folder = unfinished_folder(home, {**settings, "model": str(Fingerprint(model))})
        self.message = (
            f"Interrupted. The same command continues: {self.folder} holds the finished batches "
            f"of {' and '.join(keeping)}. It computes everything else again."
        )


@contextmanager
def finished_parts() -> Iterator[FinishedParts]:
    """Return a context manager for an evaluation that can be interrupted.

    It yields a FinishedParts. A temporary folder is removed at the end, but not after an error or
    an interruption.

    Raises:
        KeyboardInterrupt: at an interruption, with a message that says how to continue.
    """
    parts = FinishedParts()
    try:
        yield parts
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(parts.message) from stop
    wait_for_all()  # after this, no process writes to the folder
    if parts.temporary and parts.folder is not None and is_first():
        shutil.rmtree(parts.folder, ignore_errors=True)


def _keeping(config: EvaluateConfig) -> Sequence[str]:
    """Return the names of the attacks and proofs of an evaluation that keep finished batches."""
    names = [name for name in config.attacks if name.startswith(("autoattack", "screen"))]
    return [*names, *(["the proofs"] if config.certify.startswith("cascade") else [])]


def _home(config: EvaluateConfig, out: Path | None) -> Path | None:
    """Return the folder that finished parts may lie in; None if there is none.

    It is the folder of the reports. Without reports it is that of the run whose network is
    evaluated, if this process may write to it.
    """
    if out is not None:
        return out.parent if out.suffix == ".json" else out
    run = config.checkpoint.parent
    return run if (run / "config.json").is_file() and os.access(run, os.W_OK) else None
