"""What the page of an evaluation shows of the network: its size, its predictions, and examples.

``under_attack.py`` notes predictions while the attack of a run is running; this file asks the
network again, because it has the inputs of several attacks to choose from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.evaluate.under_attack import chosen_examples
from robust_plugin.recipes.pages.examples import is_image
from robust_plugin.recipes.pages.run_facts import Example, UnderAttack


@dataclass(frozen=True)
class NetworkFacts:
    """What the page of an evaluation shows beside the report.

    Attributes:
        parameters: number of parameters that are not zero, and of all; None leaves them out.
        attacked: predictions under the strongest attack; None if no attack ran.
        examples: test points without and with this attack; empty if the inputs are not images of
            one or three channels.
        class_names: name of each class; empty for numbers.
    """

    parameters: tuple[int, int] | None = None
    attacked: UnderAttack | None = None
    examples: Sequence[Example] = ()
    class_names: Sequence[str] = ()


def network_facts(
    model: nn.Module,
    report: Report,
    images: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    batch_size: int,
) -> NetworkFacts:
    """Return what the page of an evaluation shows of the network.

    Args:
        model: the network, in evaluation mode.
        report: results of the evaluation.
        images: clean inputs under ``"inputs"``, and adversarial inputs by attack name, as
            ``evaluate(..., adversarial=...)`` writes them.
        class_names: name of each class.
        batch_size: number of points in one forward pass.
    """
    left = sum(int(each.count_nonzero()) for each in model.parameters())
    size = sum(each.numel() for each in model.parameters())
    attacked, examples = _adversarial(model, report, images, batch_size)
    return NetworkFacts((left, size), attacked, examples, class_names)


def strongest_attack(report: Report, images: Mapping[str, Tensor]) -> str | None:
    """Return the attack under which the fewest points are classified correctly; None without any.

    Args:
        report: results of the evaluation.
        images: adversarial inputs by the name of the attack.
    """
    attacks = [row for row in report.rows[1:] if row in images]
    return min(attacks, key=report.accuracy, default=None)


def _adversarial(
    model: nn.Module, report: Report, images: Mapping[str, Tensor], batch_size: int
) -> tuple[UnderAttack | None, tuple[Example, ...]]:
    """Return the predictions under the strongest attack, and a few points to look at.

    They are None and empty if no attack ran; there are no examples if the inputs are not images.

    Args:
        model: the network, in evaluation mode.
        report: results of the evaluation.
        images: clean inputs under ``"inputs"``, and adversarial inputs by attack name.
        batch_size: number of points in one forward pass.
    """
    attack = strongest_attack(report, images)
    if attack is None:
        return None, ()
    x_adv = images[attack]
    x = images["inputs"][: len(x_adv)]
    clean, sure = _answers(model, x, batch_size)
    adversarial, sure_adv = _answers(model, x_adv, batch_size)
    labels = report.labels[: len(x)]
    attacked = UnderAttack(attack, labels, tuple(clean), tuple(adversarial))
    if not is_image(x):
        return attacked, ()
    # Points that are wrong anyway were not attacked. Some attacks return others as they are, too.
    right = [
        place
        for place, label in enumerate(labels)
        if clean[place] == label and not x[place].equal(x_adv[place])
    ]
    fooled = [adversarial[place] != labels[place] for place in right]
    chosen = chosen_examples(fooled, [labels[place] for place in right])
    return attacked, tuple(
        Example(
            place,
            labels[place],
            x[place],
            x_adv[place],
            (clean[place], adversarial[place]),
            (sure[place], sure_adv[place]),
        )
        for place in (right[each] for each in chosen)
    )


def _answers(model: nn.Module, x: Tensor, batch_size: int) -> tuple[list[int], list[float]]:
    """Return the predicted class of each input and its probability, for inputs x [n, ...]."""
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        logits = torch.cat(
            [model(part.to(device)).float().cpu() for part in torch.split(x, batch_size)]
        )
    found = logits.softmax(1).max(1)
    return found.indices.tolist(), found.values.tolist()
