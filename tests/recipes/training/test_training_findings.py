"""The findings that a network is at chance, after it has learned its training points or nothing."""

import math
from typing import Any

import pytest

from robust_plugin.recipes.training.training_findings import training_findings


def record(stage: str, loss: float, clean: float) -> dict[str, Any]:
    return {"stage": stage, "epoch": 0, "loss": loss, "clean": clean, "robust": 0.0}


def test_a_low_loss_with_validation_at_chance_is_a_finding() -> None:
    log = [record("pretrain", 0.2, 0.9), record("prune", 2.0, 0.1), record("prune", 0.2, 0.12)]
    (said,) = training_findings(log, classes=10, n=200)
    assert said.startswith("The stage prune ended with a validation accuracy of 12.0 %, which is")
    assert "chance (10.0 %)" in said and "loss of 0.2, where guessing has 2.3." in said
    assert "BatchNorm statistics" in said and "learning rate" in said


def test_a_loss_of_guessing_is_another_finding() -> None:
    log = [record("pretrain", 2.3, 0.1), record("prune", 2.3, 0.1), record("finetune", 0.1, 0.1)]
    (said,) = training_findings(log, classes=10, n=200)
    assert said.startswith("The stage pretrain ")
    assert "learned nothing" in said and "eps" in said and "BatchNorm" not in said


@pytest.mark.parametrize("classes", [2, 10])
def test_low_is_half_the_loss_of_guessing_and_chance_two_standard_errors(classes: int) -> None:
    n, p = 100, 1 / classes
    most = p + 2 * math.sqrt(p * (1 - p) / n)
    low, guessing = 0.5 * math.log(classes), 0.95 * math.log(classes)
    for loss, clean, found in [
        (low - 1e-6, most - 1e-6, 1),
        (low + 1e-6, most - 1e-6, 0),
        (low - 1e-6, most + 1e-6, 0),
        (0.0, 0.0, 1),  # worse than guessing
        (guessing - 1e-6, most - 1e-6, 0),
        (guessing + 1e-6, most - 1e-6, 1),
        (guessing + 1e-6, most + 1e-6, 0),
    ]:
        log = [record("finetune", loss, clean)]
        assert len(training_findings(log, classes=classes, n=n)) == found


def test_only_the_last_epoch_of_each_stage_counts() -> None:
    log = [record("prune", 0.1, 0.1), record("prune", 0.1, 0.9), record("finetune", 0.1, 0.1)]
    (said,) = training_findings(log, classes=10, n=100)
    assert "finetune" in said
    assert training_findings([], classes=10, n=100) == ()
