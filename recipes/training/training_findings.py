"""What the log of a run says is wrong with the training, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Share of log(classes), the loss of guessing, below which a mean training loss counts as low, and
# from which on it counts as that of guessing.
_LOW, _GUESSING = 0.5, 0.95


def training_findings(
    records: Sequence[Mapping[str, Any]], *, classes: int, n: int
) -> tuple[str, ...]:
    """Return one sentence or two per stage that ended with a validation accuracy at chance.

    Validation is at chance if the clean accuracy is at most p + 2 sqrt(p (1 - p) / n), where
    p = 1 / classes: two standard errors above the accuracy of guessing. The sentence depends on the
    training loss, where log(classes) is the cross-entropy of guessing. If the loss is below
    log(classes) / 2, the network has learned its training points, and evaluation mode probably
    computes something else than training mode. If it is above 0.95 log(classes), the network has
    learned nothing, and the stages after it are not looked at. Between the two, nothing is said.

    Args:
        records: the lines of log.jsonl, in their order; the last one of each stage is looked at.
        classes: number of classes, at least 2.
        n: number of validation points.
    """
    chance, guessing = 1 / classes, math.log(classes)
    most = chance + 2 * math.sqrt(chance * (1 - chance) / n)
    found = []
    for stage, last in {record["stage"]: record for record in records}.items():
        if last["clean"] > most:
            continue
        said = (
            f"The stage {stage} ended with a validation accuracy of {100 * last['clean']:.1f} %, "
            f"which is chance ({100 * chance:.1f} %), and with a training loss of "
            f"{last['loss']:.2g}, where guessing has {guessing:.2g}."
        )
        if last["loss"] < _LOW * guessing:
            found.append(
                f"{said} Look at the BatchNorm statistics (if they are not those of the pruned "
                "network, evaluation mode computes something else than training) and at the "
                "learning rate."
            )
        elif last["loss"] > _GUESSING * guessing:
            found.append(
                f"{said} So it has learned nothing. Look at the learning rate, at eps (a smaller "
                "one is easier) and at the number of epochs."
            )
            break  # the stages after it had nothing to begin with
    return tuple(found)
