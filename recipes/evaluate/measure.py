"""The measurement that all evaluations of the recipes share.

The report of a run, the command ``evaluate`` and the table before and after channel removal all
measure a network by ``measure``. With the same settings and seed they give the same report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.projected_gradient import PGD, pgd
from robust_plugin.certificates.contract import Certifier
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.runtime.progress import ProgressOption
from robust_plugin.runtime.random import seed_of
from robust_plugin.threat.model import ThreatModel


def measure(
    model: nn.Module,
    points: Dataset[Any],
    *,
    attacks: Sequence[Attack] | Mapping[str, Attack],
    seed: int,
    batch_size: int,
    certifier: Certifier | None = None,
    limits: Mapping[str, int] | None = None,
    adversarial: Path | None = None,
    progress: ProgressOption = False,
) -> Report:
    """Evaluate a model on points in their order, with random numbers that depend on the seed alone.

    Args:
        model: network to evaluate.
        points: pairs (x, y).
        attacks: attacks, or a dict of them by their names in the report, in its order.
        seed: seed of the run, or of the evaluation; PGD draws its random starts from it.
        batch_size: number of points per forward pass.
        certifier: certifier that proves points; None proves none.
        limits: number of points to use, from the first one, by attack name or ``"certified"``; an
            attack or certifier without a limit gets all points.
        adversarial: file to write the adversarial examples to; None writes none.
        progress: True for progress bars, or a function that takes a ``Progress``.
    """
    batches = loader(points, batch_size=batch_size, seed=0, epoch=0, shuffle=False)
    torch.manual_seed(seed_of(seed, "evaluation"))
    return evaluate(
        model,
        batches,
        attacks=attacks,
        certifier=certifier,
        limits=limits,
        adversarial=adversarial,
        progress=progress,
    )


def strongest_pgd(threat: ThreatModel, *, steps: int, restarts: int) -> PGD:
    """Return a PGD attack that keeps the best input of each point over all steps and starts.

    A misclassified input is best; if there is none, the input of highest loss.

    Args:
        threat: norm, eps and bounds of the inputs.
        steps: number of gradient steps per start.
        restarts: number of random starts per point.
    """
    return pgd(threat, steps=steps, restarts=restarts, keep="best")


def first_points(points: Dataset[Any], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first points of a data set as one batch on a device.

    Args:
        points: pairs (x, y).
        n: number of points; all if there are fewer.
        device: device of the batch.

    Returns:
        tuple: inputs x, shape [n, ...], and labels y, shape [n].
    """
    few = Subset(points, range(min(n, len(points))))  # type: ignore[arg-type]
    batches = loader(few, batch_size=len(few), seed=0, epoch=0, shuffle=False)
    x, y = next(iter(batches))
    return x.to(device), y.to(device)
