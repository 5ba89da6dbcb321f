"""BatchNorm's running statistics in a run, measured anew when masks have changed.

This happens at the beginning of each stage with a pruner, and after each epoch, before validation.
So validation, the choice of the best epoch and the attacks of the next epoch use statistics that
belong to the present weights and masks, also if an epoch has few steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from robust_plugin.objectives.ramp import Ramped
from robust_plugin.pruning.batch_norm import recompute_statistics
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.random import seed_of

_POINTS = 1000  # at most; on CIFAR-10 this is one point in fifty of an epoch

# Objectives that pass only clean inputs through the network in training mode, or, like free
# training, need the gradients of a training step for their perturbation.
_CLEAN = ("benign", "certified", "mixtrain", "free")


def measured_anew(
    run: Run, name: str, model: nn.Module, stage: StageConfig, *, epoch: int, epochs: int
) -> None:
    """Measure the running statistics of the network's BatchNorms anew, on training points.

    The points are the first 1,000 of the next epoch, augmented as there, and the statistics are
    those of the inputs that the objective passes through the network, such as adversarial ones.
    They depend only on the network and on (seed, stage, epoch), so a continued run gets the same.
    Several processes share the points, as in a training step. A network without BatchNorm does
    not change.

    Args:
        run: run whose training points and objective are used.
        name: name of the stage.
        model: network without the wrappers of training.
        stage: settings of the stage.
        epoch: number of epochs of the stage that are done.
        epochs: number of epochs of the stage.
    """
    config = run.config
    objective = None
    if run.objective.name not in _CLEAN:
        objective = build_objective(run.objective, run.threat, ramp=stage.ramp)
        if isinstance(objective, Ramped):
            objective.progress(epoch, epochs)
    rank, world = rank_and_world()
    torch.manual_seed(seed_of(config.seed, name, epoch, "statistics", rank))
    batches = loader(
        run.data.train,
        batch_size=config.data.batch_size,
        seed=seed_of(config.seed, name),
        epoch=epoch,
        shuffle=True,
        workers=config.data.workers,
        part=rank,
        parts=world,
        device=run.device,
    )
    count = -(-_POINTS // config.data.batch_size)
    chosen = islice(batches, count if run.steps is None else min(count, run.steps))
    recompute_statistics(model, _parts(chosen, config.accumulate), objective=objective)


def _parts(batches: Iterator[tuple[Tensor, Tensor]], parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the micro-batches of training steps: every ``parts``-th point of each batch."""
    for x, y in batches:
        for number in range(min(parts, len(x))):
            yield x[number::parts], y[number::parts]
