"""The training loop of all stages.

Pre-training, pruning and fine-tuning use the same loop and differ in the parameters they train.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn

from robust_plugin.attacks.logits import NotFinite
from robust_plugin.objectives.by_attack import replay
from robust_plugin.pruning.phases import PhaseName
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.batches import batches_of
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.runtime.process_group import summed
from robust_plugin.recipes.training.averaging import Average
from robust_plugin.recipes.training.length import Length, Span, length_of, span_of
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.statistics import measured_anew
from robust_plugin.recipes.training.step import Steps
from robust_plugin.recipes.training.validation import validated
from robust_plugin.runtime.distributed import check_ranks, rank_and_world
from robust_plugin.runtime.random import seed_of

# Keys of a log record that a tracker does not get: which epoch it is about, and a dict of values.
_NOT_TRACKED = ("stage", "epoch", "densities")


class Diverged(ValueError):
    """Error raised if the loss or the network outputs become NaN or infinite in training."""


def pretrained(run: Run) -> nn.Module:
    """Return the dense network, loaded from the configured checkpoint or, without one, trained.

    Afterwards, torch's global generator is in a state that depends only on the run's seed.
    """
    model = run.fresh_model()
    if run.config.checkpoint is not None:
        load_weights(model, run.config.checkpoint)
    else:
        train(run, "pretrain", model, run.config.pretrain)
    if run.config.regularizers.distill:
        run.teacher = copy.deepcopy(model).eval().requires_grad_(False)
    # The random scores that are drawn next must be the same whether or not the network was trained
    # in this process.
    torch.manual_seed(seed_of(run.config.seed, "scores"))
    return model


def train(
    run: Run,
    name: str,
    model: nn.Module,
    stage: StageConfig,
    *,
    pruner: Pruner | None = None,
    phase: PhaseName = "finetune",
    sharing: Sequence[StageConfig] = (),
) -> nn.Module:
    """Train one stage with the run's objective, or continue a stage that was interrupted.

    The order of the points and the random numbers of an epoch depend only on (seed, stage, epoch).
    So a continued run gives the same result as an uninterrupted one, even with a different number
    of processes.

    Args:
        run: run that the stage belongs to; its data, objective and folder are used.
        name: name of the stage, and of its checkpoint files.
        model: network to train in place.
        stage: settings of the stage, such as epochs and optimizer.
        pruner: pruner attached to the model; None trains all parameters of a dense network.
        phase: phase of the pruner, which decides which parameters are trained; ignored without a
            pruner.
        sharing: stages in order, ``stage`` among them, that follow one learning rate cosine
            together; empty if the stage has a cosine of its own.

    Returns:
        nn.Module: ``model``, with the weights after its last epoch or, if ``stage.select`` is best,
        after the epoch with the best robust accuracy on the validation points.

    Raises:
        Diverged: if the loss or an output of the network is not finite.
        ValueError: if the run's folder holds a checkpoint of this stage that was trained with other
            settings.
    """
    run.enter(name, stage, pruner)
    saved = run.saved(name)
    records: list[dict[str, Any]] = saved.meta["records"] if saved is not None else []
    if saved is not None:
        saved.restore(model=model, pruner=pruner)
    parameters = model.parameters() if pruner is None else pruner.set_phase(phase)
    optimizer = _optimizer(parameters, stage)
    if saved is not None:
        saved.restore(optimizer=optimizer)
    length = length_of(run, stage)
    span = span_of(run, stage, sharing)
    decay = run.config.regularizers.average
    average = Average(optimizer, decay) if decay and name == "finetune" else None
    if average is not None:
        average.resume(len(records) * length.steps_per_epoch)
    if pruner is not None and phase in ("shrink", "prune"):
        pruner.follow(optimizer, epochs=length.epochs, steps_per_epoch=length.steps_per_epoch)

    done = len(records) * length.steps_per_epoch
    epochs = length.epochs if run.steps is None else 1
    with (
        run.acceleration.prepared(model) as wrapped,
        run.progress.stage(name, epochs=length.epochs, steps=length.steps, done=done),
    ):
        if pruner is not None and not records:  # its masks are new
            measured_anew(run, name, model, stage, epoch=0, epochs=length.epochs)
        for epoch in range(len(records), epochs):
            try:
                loss = _epoch(run, name, wrapped, optimizer, stage, pruner, epoch, length, span)
                check_ranks(model)
                kept = nullcontext() if average is None else average.in_place(model)
                with run.timed(name, "validation"), kept:
                    measured_anew(run, name, model, stage, epoch=epoch + 1, epochs=length.epochs)
                    record: dict[str, Any] = {"stage": name, "epoch": epoch, "loss": loss}
                    record |= validated(run, model)
                    record["density"] = 1.0 if pruner is None else pruner.kept / pruner.budget.full
                    record["densities"] = {} if pruner is None else pruner.densities  # by layer
                    best = _is_best(record, records, None if phase != "shrink" else pruner)
                    records.append(record)
                    if best:
                        run.save_best(name, model=model, pruner=pruner, records=records)
            except NotFinite as error:
                raise Diverged(
                    f"{name} has diverged in epoch {epoch}: {error} Lower its learning rate "
                    f"({stage.lr})."
                ) from error
            run.save_epoch(name, model=model, pruner=pruner, optimizer=optimizer, records=records)
            run.acceleration.log(
                {
                    f"{name}/{key}": value
                    for key, value in record.items()
                    if key not in _NOT_TRACKED
                },
                step=run.progress.before(name, per_epoch=length.steps_per_epoch) + epoch,
            )
            run.progress.show(
                loss=f"{loss:.3f}",
                robust=f"{record['robust']:.3f}",
                density=f"{record['density']:.4f}",
            )
    if stage.select == "best":
        best_epoch = run.saved(name, best=True)
        if best_epoch is not None:
            best_epoch.restore(model=model, pruner=pruner)
    elif average is not None:
        average.exchange()
        measured_anew(run, name, model, stage, epoch=length.epochs, epochs=length.epochs)
    return model


def _is_best(
    record: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], pruner: Pruner | None
) -> bool:
    """Return whether an epoch has the best robust accuracy of its stage so far.

    Args:
        record: losses, accuracies and density after the epoch.
        earlier: the same after each earlier epoch.
        pruner: pruner of a stage in which the density falls: only epochs count that end within its
            budget; None if all epochs count.
    """

    def counts(each: Mapping[str, Any]) -> bool:
        budget = None if pruner is None else pruner.budget
        return budget is None or each["density"] <= budget.total / budget.full

    return counts(record) and all(
        record["robust"] >= each["robust"] for each in earlier if counts(each)
    )


def _epoch(
    run: Run,
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: StageConfig,
    pruner: Pruner | None,
    epoch: int,
    length: Length,
    span: Span,
) -> float:
    """Train one epoch and return the mean loss per optimizer step, over all processes.

    A dry run takes only the first ``run.steps`` steps.

    Args:
        run: run that the stage belongs to.
        name: name of the stage.
        model: network as wrapped by ``Acceleration.prepared``.
        optimizer: optimizer of the parameters that the stage trains.
        stage: settings of the stage.
        pruner: pruner attached to the network; None for a dense network.
        epoch: index of the epoch in the stage.
        length: length of the whole stage.
        span: the stage's part of a learning rate cosine.

    Raises:
        Diverged: if the loss is not finite.
    """
    data, config = run.data.train, run.config.data
    rank, world = rank_and_world()
    size, seed = config.batch_size, seed_of(run.config.seed, name)
    whole = batches_of(data, batch_size=size, seed=seed, epoch=epoch, shuffle=True)
    batches = loader(
        data,
        batch_size=size,
        seed=seed,
        epoch=epoch,
        shuffle=True,
        workers=config.workers,
        part=rank,
        parts=world,
        device=run.device,
    )
    step_on = Steps(
        run,
        model,
        optimizer=optimizer,
        pruner=pruner,
        stage=stage,
        seed=seed_of(run.config.seed, name, epoch),
    )
    total, steps = 0.0, length.steps_per_epoch
    model.train()
    shown = replay(zip(batches, whole, strict=True), length.passes)
    for step, ((x, y), batch) in enumerate(islice(shown, run.steps)):
        for group in optimizer.param_groups:
            group["lr"] = cosine(stage.lr, (span.after + epoch) * steps + step, span.of * steps)
        step_on.progress(epoch + step / steps, length.epochs)
        loss = step_on(x, y, len(batch))
        total += loss
        if not math.isfinite(total):
            raise Diverged(
                f"the loss of {name} is {loss} at epoch {epoch}, step {step}; lower its "
                f"learning rate ({stage.lr})."
            )
        run.progress.update()
    return summed([total])[0] / (steps if run.steps is None else min(steps, run.steps))


def cosine(lr: float, step: int, steps: int) -> float:
    """Return the learning rate lr/2 (1 + cos(pi step / steps)), which falls from lr towards 0.

    Args:
        lr: learning rate at step 0.
        step: index of the step, from 0 to steps - 1.
        steps: number of steps in the stage.
    """
    return lr / 2 * (1 + math.cos(math.pi * step / steps))


def _optimizer(parameters: Any, stage: StageConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a stage, Adam or SGD.

    Args:
        parameters: parameters to train, or the optimizer param groups that the pruner's
            ``set_phase`` returns.
        stage: settings of the stage. With ``decay_scores``, all param groups get weight decay,
            also the scores and the learned layer densities.
    """
    if stage.decay_scores:
        parameters = [{**group, "weight_decay": stage.weight_decay} for group in parameters]
    if stage.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=stage.lr, weight_decay=stage.weight_decay)
    return torch.optim.SGD(
        parameters, lr=stage.lr, momentum=stage.momentum, weight_decay=stage.weight_decay
    )
