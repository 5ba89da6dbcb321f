"""Clean and robust accuracy on the validation points, split over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.recipes.data.batches import batches_of
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.runtime.process_group import summed
from robust_plugin.recipes.training.objective import validation_certifier
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.random import seed_of


def validated(run: Run, model: nn.Module) -> dict[str, float]:
    """Return the clean and robust accuracy on the validation points, as {"clean", "robust"}.

    If the objective trains by bounds, robust accuracy is the certified accuracy; otherwise it is
    the accuracy under PGD. Both are shares of all validation points, from 0 to 1. Each process
    evaluates whole batches, and the random numbers for a batch depend only on the seed and the
    index of the batch. So the accuracies do not depend on the number of processes, and PGD has the
    same random starts in every epoch.

    Args:
        run: run whose validation points, objective and threat model are used.
        model: network to evaluate; its mode (training or evaluation) does not change.
    """
    rank, world = rank_and_world()
    size = run.config.evaluation.batch_size
    if run.steps is not None:  # a dry run evaluates a few points only
        size = min(size, run.config.data.batch_size)
    points = run.data.validation
    batches = batches_of(points, batch_size=size, seed=0, epoch=0, shuffle=False)
    batches = batches if run.steps is None else batches[:1]
    numbers = range(rank, len(batches), world)
    clean = robust = 0
    if numbers:
        if len(numbers) < len(batches) or run.steps is not None:
            points = Subset(points, [row for number in numbers for row in batches[number]])
        loaded = loader(
            points,
            batch_size=size,
            seed=0,
            epoch=0,
            shuffle=False,
            workers=run.config.data.workers,
            device=run.device,
        )
        certifier = validation_certifier(run.config.objective, run.threat)
        attack = pgd(run.threat, steps=run.config.objective.steps)
        proving = certifier is not None  # proofs are for the network in float32, uncompiled
        with run.acceleration.bare(model) if proving else nullcontext():
            report = evaluate(
                model,
                _seeded(loaded, numbers, run.config.seed),
                attacks=[] if proving else [attack],
                certifier=certifier,
            )
        row = attack.name if certifier is None else "certified"
        clean, robust = (round(report.accuracy(name) * report.n) for name in ("clean", row))
    n = sum(map(len, batches))
    clean_sum, robust_sum = summed([clean, robust])
    return {"clean": clean_sum / n, "robust": robust_sum / n}


def _seeded(
    batches: Iterable[Any], numbers: Iterable[int], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches as they are, and seed torch's global generator before each one.

    So the random numbers of an attack on a batch depend only on ``seed`` and the batch's index. The
    caller restores the state of the generator.

    Args:
        batches: pairs (x, y).
        numbers: for each of ``batches``, its index among all validation batches.
        seed: seed of the run.
    """
    for number, batch in zip(numbers, batches, strict=True):
        torch.manual_seed(seed_of(seed, "validation", number))
        yield batch
