"""One optimizer step on a batch that is split over processes and micro-batches.

The gradient is that of the mean loss over the whole batch, and random numbers are drawn for the
whole batch. So the numbers of processes and micro-batches do not change the result. BatchNorm is
the exception: it normalizes over the points of one forward pass, which are fewer when the batch is
split.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from robust_plugin.objectives.by_attack import Objective
from robust_plugin.objectives.by_distillation import distilled
from robust_plugin.objectives.by_perturbation import perturbed
from robust_plugin.objectives.ramp import Ramped
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.batches import rows_of
from robust_plugin.recipes.runtime.process_group import average_statistics
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.distributed import rank_and_world, unwrapped
from robust_plugin.runtime.random import Share, drawing, seed_of


class Steps:
    """Callable that takes one optimizer step per call, for all steps of one epoch.

    Args:
        run: run that the steps belong to; its objective, precision and number of micro-batches
            are used.
        model: network as wrapped by ``Acceleration.prepared``.
        optimizer: optimizer of the parameters that the stage trains.
        pruner: pruner attached to the network; None if the network is trained dense.
        stage: settings of the stage; only ``ramp`` is used.
        seed: seed of all random numbers of the epoch.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        pruner: Pruner | None,
        stage: StageConfig,
        seed: int,
    ) -> None:
        self.run, self.model, self.optimizer, self.pruner = run, model, optimizer, pruner
        # Objectives may keep state between steps. They are built anew for each epoch, so that a
        # run that is resumed at an epoch gives exactly the same result. There is one objective per
        # micro-batch, because the state belongs to positions in the batch.
        self._plain = [
            build_objective(run.objective, run.threat, ramp=stage.ramp)
            for _ in range(run.config.accumulate)
        ]
        self._objectives = [_regularized(each, run) for each in self._plain]
        self._generator = torch.Generator(device=run.device).manual_seed(seed)
        # The global generator, which e.g. dropout uses, is seeded differently in each process.
        rank, _ = rank_and_world()
        torch.manual_seed(seed if rank == 0 else seed_of(seed, "process", rank))

    def progress(self, epoch: float, epochs: float) -> None:
        """Set eps and loss weights to their values at a time, for objectives that raise them.

        Args:
            epoch: number of epochs since the stage began; may be a fraction.
            epochs: number of epochs of the stage.
        """
        for objective in self._plain:
            if isinstance(objective, Ramped):
                objective.progress(epoch, epochs)

    def __call__(self, x: Tensor, y: Tensor, size: int) -> float:
        """Take one step.

        Args:
            x: points of this process, shape [B, ...]: every n-th point of the batch, for n
                processes. A process without points in this batch gets one point with weight 0.
            y: labels of the points in ``x``, shape [B].
            size: number of points in the whole batch, over all processes.

        Returns:
            float: this process's part of the mean loss over the batch; the parts of all processes
            add up to that mean.
        """
        rank, world = rank_and_world()
        count, total = len(self._objectives), 0.0
        x, y = self._placed(x), y.to(self.run.device, non_blocking=True)
        start = self._generator.get_state()
        self.optimizer.zero_grad()
        # The first micro-batch is computed last, because the last backward pass exchanges the
        # gradients between processes, and the first micro-batch always has points.
        for number in reversed(range(count)):
            points, labels = x[number::count], y[number::count]
            if len(points) == 0:
                continue
            rows = rows_of(size, number * world + rank, count * world)
            self._generator.set_state(start)
            # A process without points computes one point with weight 0, because the other processes
            # wait for its gradients.
            share = Share(rows or (size - 1,), size, self._generator)
            weight = len(rows) / size
            exchange = self.run.acceleration.gathering(self.model) if number else nullcontext()
            with exchange, drawing(share):
                loss = self._objectives[number](self.model, points, labels)
                if self.pruner is not None:
                    loss = loss + self.pruner.budget_penalty()
                scale = weight * world  # DistributedDataParallel averages gradients over processes
                self.run.acceleration.backward(loss if scale == 1 else scale * loss)
            total += weight * loss.item()
        self.optimizer.step()
        average_statistics(unwrapped(self.model))
        return total

    def _placed(self, x: Tensor) -> Tensor:
        """Copy points to the run's device, in the memory format of the run's settings."""
        if self.run.config.channels_last and x.dim() == 4:
            return x.to(self.run.device, memory_format=torch.channels_last, non_blocking=True)
        return x.to(self.run.device, non_blocking=True)


def _regularized(objective: Objective, run: Run) -> Objective:
    """Return the objective of the run's present stage, with the run's regularizers.

    Pre-training has none.
    """
    own = run.config.regularizers
    if run.stage == "pretrain":
        return objective
    if run.teacher is not None:
        objective = distilled(objective, run.teacher, weight=own.distill)
    gamma = own.weight_perturbation
    if run.stage == "prune":
        learned = getattr(run.config, "learn", "scores")
        gamma = 0.0 if learned == "rates" else own.score_perturbation
    return perturbed(objective, gamma=gamma) if gamma else objective
