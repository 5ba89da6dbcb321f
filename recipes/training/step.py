"""One optimizer step on a batch, whoever computes its points: processes and micro-batches.

The gradient is that of the mean over the whole batch, and noise is drawn for the whole batch, so
that neither the number of processes nor that of micro-batches changes what is learned. But for
BatchNorm, which normalises over the points of one forward pass, as it does everywhere.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

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
    """The optimizer steps of one epoch.

    Args:
        run: objective, precision and number of micro-batches.
        model: the network, wrapped for this phase.
        optimizer: of what the phase trains.
        pruner: attached to the network, or None.
        stage: the ramp of its objective.
        seed: of the epoch's noise.
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
        # Anew for each epoch: what it holds is then a function of the place, and resuming is exact.
        # One a micro-batch: what it holds belongs to places of the batch.
        self._objectives = [
            build_objective(run.objective, run.threat, ramp=stage.ramp)
            for _ in range(run.config.accumulate)
        ]
        self._generator = torch.Generator(device=run.device).manual_seed(seed)
        # What is drawn besides, as by dropout, differs between processes.
        rank, _ = rank_and_world()
        torch.manual_seed(seed if rank == 0 else seed_of(seed, "process", rank))

    def progress(self, epoch: float, epochs: float) -> None:
        """Move what is scheduled to where it is when ``epoch`` of ``epochs`` have passed."""
        for objective in self._objectives:
            if isinstance(objective, Ramped):
                objective.progress(epoch, epochs)

    def __call__(self, x: Tensor, y: Tensor, size: int) -> float:
        """Take one step.

        Args:
            x: the points of the batch that this process computes, every n-th of n processes; one
                that does not count where there is none for it.
            y: their labels.
            size: points in the batch.

        Returns:
            float: this process's part of the batch's loss; the parts add up to it.
        """
        rank, world = rank_and_world()
        count, total = len(self._objectives), 0.0
        x, y = self._placed(x), y.to(self.run.device, non_blocking=True)
        start = self._generator.get_state()
        self.optimizer.zero_grad()
        # Backwards: the first micro-batch, which has points wherever one has, shares the gradients.
        for number in reversed(range(count)):
            points, labels = x[number::count], y[number::count]
            if len(points) == 0:
                continue
            rows = rows_of(size, number * world + rank, count * world)
            self._generator.set_state(start)
            # Where there is no point for this process, one without weight stands in: the others
            # wait for its gradients.
            share = Share(rows or (size - 1,), size, self._generator)
            weight = len(rows) / size
            held = self.run.acceleration.gathering(self.model) if number else nullcontext()
            with held, drawing(share):
                loss = self._objectives[number](self.model, points, labels)
                if self.pruner is not None:
                    loss = loss + self.pruner.budget_penalty()
                scale = weight * world  # DistributedDataParallel takes the mean over processes
                self.run.acceleration.backward(loss if scale == 1 else scale * loss)
            total += weight * loss.item()
        self.optimizer.step()
        average_statistics(unwrapped(self.model))
        return total

    def _placed(self, x: Tensor) -> Tensor:
        if self.run.config.channels_last and x.dim() == 4:
            return x.to(self.run.device, memory_format=torch.channels_last, non_blocking=True)
        return x.to(self.run.device, non_blocking=True)
