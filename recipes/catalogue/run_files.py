"""Descriptions of the files in the folder of a run, one phrase per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_plugin.runtime.tables import table

_PHRASES = {
    "model.safetensors": "weights of the final network, under the names of the dense network",
    "small.safetensors": "the final network without the removed channels",
    "report.html": "page with tables and pictures of the run, for a browser",
    "report.json": "evaluation on the test points, with the result of each point",
    "kept.png": "plot: density of each layer",
    "channels.json": "number of kept channels in each group",
    "before_after.txt": "table: size, latency and accuracy before and after pruning",
    "before_after.json": "the numbers of before_after.txt",
    "examples.safetensors": "a few test points, clean and attacked, for report.html",
    "smoothing.txt": "table: certified accuracy against the L2 radius",
    "smoothing.png": "plot: certified accuracy against the L2 radius",
    "log.jsonl": "one line per epoch: loss, validation accuracies, density",
    "config.json": "all settings",
    "tensorboard": "curves: tensorboard --logdir",
    "wandb": "local files of Weights & Biases",
}
_ORDER = list(_PHRASES)


def phrase(name: str) -> str:
    """Return the description of a file or folder in a run's folder.

    Args:
        name: name of the file or folder, without its path.

    Returns:
        str: the description; empty if no run writes a file with this name.
    """
    if name in _PHRASES:
        return _PHRASES[name]
    if name.startswith("unfinished-"):
        return "finished part of an interrupted evaluation, from which it continues"
    if name.endswith(".best.safetensors"):
        stage = name.removesuffix(".best.safetensors")
        return f"{stage} after the epoch with the best validation accuracy"
    if name.endswith(".safetensors"):
        stage = name.removesuffix(".safetensors")
        return f"{stage} after its last epoch; an interrupted run continues from it"
    return ""


def files_of(names: Sequence[str], *, sizes: dict[str, int] | None = None) -> str:
    """Return one line per file with its name and description, results first.

    Files that no run writes are left out.

    Args:
        names: names of files and folders in the folder of a run.
        sizes: sizes in bytes by name, for the files whose size is known; None prints no sizes.
    """
    known = sorted(
        (name for name in names if phrase(name)),
        key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name),
    )
    if sizes is None:
        return "\n".join(table([["", name, phrase(name)] for name in known], align="<<<"))
    shown = {name: f"{size / 1e6:.1f} MB" for name, size in sizes.items()}
    rows = [["", name, shown.get(name, ""), phrase(name)] for name in known]
    return "\n".join(table(rows, align="<<><"))


def written(folder: Path) -> str:
    """Return one line per file that is in the folder of a run, with its description."""
    return files_of([path.name for path in folder.iterdir()])
