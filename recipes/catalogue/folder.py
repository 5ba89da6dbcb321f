"""What a run's folder holds, a phrase a file."""

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
    """Return what a file or folder of a run is; empty for one that is none of a run's."""
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
    """Return a line for each file that is a run's, results first.

    Args:
        names: of files and folders.
        sizes: in bytes, where they are known.
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
    """Return a line for each file that a run has left in its folder."""
    return files_of([path.name for path in folder.iterdir()])
