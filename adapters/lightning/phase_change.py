"""What Lightning makes anew when a phase of the pruner begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import nn


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks in the order in which they are called."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set elsewhere
    return every


def make_optimizers(trainer: Trainer, epochs: int) -> list[torch.optim.Optimizer]:
    """Wrap the module in DDP again, and call its ``configure_optimizers`` again.

    DDP averages only the gradients of what was trained when it was made.

    Args:
        trainer: the trainer, within its fit.
        epochs: number of epochs of the phase. It is the trainer's ``max_epochs`` meanwhile, so that
            learning rate schedules span the phase.
    """
    strategy, loop = trainer.strategy, trainer.fit_loop
    trainer.lightning_module.zero_grad()
    if isinstance(strategy, DDPStrategy):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()
    total, loop.max_epochs = loop.max_epochs, epochs
    try:
        strategy.setup_optimizers(trainer)
    finally:
        loop.max_epochs = total
    return strategy.optimizers


def keep_trained(
    optimizers: Sequence[torch.optim.Optimizer],
    network: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    *,
    prune: bool,
) -> None:
    """Let optimizers train what a phase trains, in as many groups as they have.

    Learning rate schedules were made for this number of groups. In the prune phase, scores and
    rates go into the group that had most of the weights, and this group gets no weight decay, which
    would pull every layer's density to one half.

    Args:
        optimizers: what the user's ``configure_optimizers`` returned; changed in place.
        network: the masked network; parameters of other modules stay where they are.
        groups: what ``Pruner.set_phase`` returned, in the prune phase with scores and rates first.
        prune: whether it is the prune phase. Which weights fine-tuning trains is the user's choice.
    """
    own, trained = set(network.parameters()), [p for each in groups for p in each["params"]]
    stays = set(trained) - set(groups[0]["params"]) if prune else set(trained)
    places = [group for optimizer in optimizers for group in optimizer.param_groups]
    lost = []
    for group in places:
        kept = [p for p in group["params"] if p not in own or p in stays]
        lost.append(sum(p.numel() for p in group["params"]) - sum(p.numel() for p in kept))
        group["params"] = kept
    if prune:
        held = {p for group in places for p in group["params"]}
        home = places[lost.index(max(lost))]
        home["params"] = [p for p in trained if p not in held] + home["params"]
        if "weight_decay" in home:
            home["weight_decay"] = 0.0


def forget_best(trainer: Trainer) -> None:
    """Let early stopping and the best checkpoint begin anew with a phase.

    A network of an earlier phase often keeps more weights, and is better for that reason alone.
    """
    trainer.should_stop = False
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping):
            least = torch.tensor(math.inf)
            callback.wait_count = 0
            callback.best_score = least if callback.monitor_op == torch.lt else -least
        elif isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None


def steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimizer steps per epoch: batches over accumulated batches.

    Raises:
        ValueError: if the trainer does not know it.
    """
    trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    varies = any(isinstance(each, GradientAccumulationScheduler) for each in callbacks_of(trainer))
    if varies or math.isinf(batches):
        reason = "accumulation changes" if varies else "the train loader has no length"
        raise ValueError(
            f"the number of optimizer steps per epoch is not known, because {reason}; give "
            "PruningCallback(..., steps_per_epoch=...), the mean number in the prune phase."
        )
    return math.ceil(batches / trainer.accumulate_grad_batches)
