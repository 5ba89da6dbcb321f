"""Descriptions of the files in the folder of a run, one phrase per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PHRASES = {
    "model.safetensors": "the finished network, plain, with the names of the dense one",
    "small.safetensors": "the network without the channels that were removed",
    "report.json": "its evaluation on the test points, every point's verdict",
    "kept.png": "what each layer keeps",
    "channels.json": "how many channels each group keeps",
    "before_after.txt": "size and latency before and after",
    "before_after.json": "the same in numbers",
    "smoothing.txt": "certified accuracy against radius",
    "smoothing.png": "the same, drawn",
    "log.jsonl": "a line an epoch: loss, accuracies on validation, density",
    "config.json": "all settings",
    "tensorboard": "curves: tensorboard --logdir",
    "wandb": "what Weights & Biases keeps here",
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
        return "verdicts of an interrupted evaluation, to go on from"
    if name.endswith(".best.safetensors"):
        return f"{name.removesuffix('.best.safetensors')} after its best epoch on validation"
    if name.endswith(".safetensors"):
        return f"{name.removesuffix('.safetensors')} after its last epoch, to go on from"
    return ""


def files_of(names: Sequence[str], *, sizes: dict[str, int] | None = None) -> str:
    """Return one line per file with its description, results first; skip unknown files.

    Args:
        names: names of files and folders in the folder of a run.
        sizes: sizes in bytes by name, for the files whose size is known; None prints no sizes.
    """
    known = sorted(
        (name for name in names if phrase(name)),
        key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name),
    )
    width = max((len(name) for name in known), default=0)
    lines = []
    for name in known:
        size = ""
        if sizes is not None:
            size = f"{f'{sizes[name] / 1e6:.1f} MB' if name in sizes else '':>10}  "
        lines.append(f"  {name:<{width}}  {size}{phrase(name)}")
    return "\n".join(lines)


def written(folder: Path) -> str:
    """Return one line per file that is in the folder of a run, with its description."""
    return files_of([path.name for path in folder.iterdir()])
