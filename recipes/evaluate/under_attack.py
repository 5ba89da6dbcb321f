"""What the attack at the end of a run does to single points: predictions, and images to look at.

``Watched`` wraps the attack and notes what the network answers, so that the page of a run needs no
second attack. ``predictions_of`` and ``save_examples`` turn the notes into values for report.json
and into examples.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from robust_plugin.attacks.projected_gradient import PGD
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.runtime.files import read_tensors, write_tensors

# Number of test points, from the first one, whose predictions are stored.
_POINTS = 10_000
# Number of example points that the attack has fooled, and that it has not fooled.
_FOOLED, _ROBUST = 6, 2


class Watched:
    """A PGD attack that notes the network's answers to its results; the results stay the same.

    Args:
        attack: the attack.

    Attributes:
        name: name of the attack.
        threat: threat model of the attack.
        predictions: predicted class of each adversarial input so far. ``evaluate`` gives an attack
            only points that the network classifies correctly.
        first: adversarial inputs [B, ...], their clean inputs and their labels [B] of the first
            call, on the CPU; None before that.
    """

    def __init__(self, attack: PGD) -> None:
        self.attack, self.name, self.threat = attack, attack.name, attack.threat
        self.predictions: list[int] = []
        self.first: tuple[Tensor, Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        """Return the repr of the attack, because reports describe attacks by it."""
        return repr(self.attack)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what the attack returns for inputs x [B, ...] and labels y [B]."""
        x_adv = self.attack(model, x, y)
        with torch.no_grad():
            self.predictions += model(x_adv).argmax(1).tolist()
        if self.first is None:
            self.first = (x_adv.detach().cpu(), x.detach().cpu(), y.cpu())
        return x_adv


def predictions_of(
    watched: Watched, model: nn.Module, points: Dataset[Any], right: Sequence[bool], batch_size: int
) -> dict[str, Any]:
    """Return the predicted classes of the first test points, clean and under the attack, for JSON.

    A point that is misclassified without the attack has the same prediction in both lists.

    Args:
        watched: the attack after an evaluation on these points.
        model: the network that was evaluated, in evaluation mode.
        points: pairs (x, y), in the order of the evaluation.
        right: for each point, whether the clean input is classified correctly.
        batch_size: number of points per forward pass.

    Returns:
        dict: ``"attack"``, its name, and two lists of classes, ``"clean"`` and ``"adversarial"``.
    """
    few = Subset(points, range(min(len(right), _POINTS)))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    clean: list[int] = []
    with torch.no_grad():
        for x, _ in loader(few, batch_size=batch_size, seed=0, epoch=0, shuffle=False):
            clean += model(x.to(device)).argmax(1).tolist()
    attacked = iter(watched.predictions)
    adversarial = [
        next(attacked) if correct else prediction
        for correct, prediction in zip(right, clean, strict=False)
    ]
    return {"attack": watched.name, "clean": clean, "adversarial": adversarial}


def save_examples(watched: Watched, model: nn.Module, right: Sequence[bool], path: Path) -> None:
    """Write a few test points, clean and adversarial, to a safetensors file.

    They are chosen from the first batch: points that the attack has fooled, of as many classes as
    possible, and points that it has not fooled. If no point was attacked, there is no file.

    The file has the tensors ``clean`` and ``adversarial`` [n, ...], ``points`` (indices in the test
    set) and ``labels`` [n], and the logits of both, ``clean_logits`` and ``adversarial_logits``.

    Args:
        watched: the attack after an evaluation.
        model: the network that was evaluated, in evaluation mode.
        right: for each test point, whether the clean input is classified correctly.
        path: the file.
    """
    if watched.first is None:
        path.unlink(missing_ok=True)  # that of an earlier evaluation
        return
    adversarial, clean, labels = watched.first
    indices = [point for point, correct in enumerate(right) if correct][: len(labels)]
    fooled = [p != y for p, y in zip(watched.predictions, labels.tolist(), strict=False)]
    shown = chosen_examples(fooled, labels.tolist())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = {"clean": clean[shown], "adversarial": adversarial[shown]}
    with torch.no_grad():
        logits = {f"{name}_logits": model(x.to(device)).float() for name, x in images.items()}
    which = {"points": torch.tensor(indices)[shown], "labels": labels[shown]}
    write_tensors(path, {**images, **logits, **which}, {"attack": watched.name})


def read_examples(path: Path) -> dict[str, Tensor]:
    """Return the tensors that ``save_examples`` wrote, by name; empty if there is no file."""
    return read_tensors(path)[0] if path.is_file() else {}


def chosen_examples(fooled: Sequence[bool], labels: Sequence[int]) -> list[int]:
    """Return the places of a few points to look at: fooled ones first, of many classes.

    Args:
        fooled: for each attacked point, whether it was fooled.
        labels: class of each point, for as many points or more.
    """
    shown = _of_many_classes([i for i, f in enumerate(fooled) if f], labels)[:_FOOLED]
    return shown + _of_many_classes([i for i, f in enumerate(fooled) if not f], labels)[:_ROBUST]


def _of_many_classes(places: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Return the places in another order: the first of each class, then the second, and so on.

    Args:
        places: indices into ``labels``.
        labels: class of each point.
    """
    seen: dict[int, int] = {}
    ranked = []
    for place in places:
        label = labels[place]
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], place))
    return [place for _, place in sorted(ranked)]
