"""The one training loop: pre-train, prune and fine-tune are the same loop over other parameters."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from robust_plugin.attacks import pgd
from robust_plugin.evaluation import evaluate
from robust_plugin.objectives import replay
from robust_plugin.pruner import Pruner
from robust_plugin.ramp import Ramped
from robust_plugin.recipes.config import StageConfig
from robust_plugin.recipes.data import loader
from robust_plugin.recipes.identity import seed_of
from robust_plugin.recipes.run import Run, load_weights


def pretrained(run: Run) -> nn.Module:
    """Return the dense network: the configured checkpoint, or one trained by the objective."""
    model = run.fresh_model()
    if run.config.checkpoint is not None:
        load_weights(model, run.config.checkpoint)
    else:
        train(run, "pretrain", model, run.config.pretrain)
    # What is drawn next, random scores, must not depend on whether it was trained just now.
    torch.manual_seed(seed_of(run.config.seed, "scores"))
    return model


def train(
    run: Run,
    name: str,
    model: nn.Module,
    stage: StageConfig,
    *,
    pruner: Pruner | None = None,
    phase: Literal["prune", "finetune"] = "finetune",
) -> nn.Module:
    """Train a model by the run's objective, or go on where an interrupted run stopped.

    Each epoch's order and noise are a function of (seed, stage, epoch), so that a continued run
    equals an uninterrupted one.

    Args:
        run: data, objective and folder.
        name: of the stage, and of its checkpoint.
        model: trained in place, and returned.
        stage: epochs and optimizer.
        pruner: attached to the model; None trains it dense.
        phase: what of the pruner is trained.

    Raises:
        ValueError: if the folder holds this stage with other settings, or the loss is not finite.
    """
    run.enter(name, stage, pruner)
    saved = run.saved(name)
    records: list[dict[str, Any]] = saved.meta["records"] if saved is not None else []
    if saved is not None:
        saved.restore(model=model, pruner=pruner)
    trained = model.parameters() if pruner is None else pruner.set_phase(phase)
    optimizer = _optimizer(trained, stage)
    if saved is not None:
        saved.restore(optimizer=optimizer)
    passes = run.objective.replays if run.objective.name == "free" else 1
    epochs = max(1, stage.epochs // passes)
    batches = math.ceil(len(run.data.train) / run.config.data.batch_size)  # type: ignore[arg-type]
    steps = batches * passes
    if pruner is not None and phase == "prune":
        pruner.follow(optimizer, epochs=epochs, steps_per_epoch=steps)

    if len(records) < epochs and not sys.stderr.isatty():  # where no bar is shown
        print(f"{name}, epochs {len(records)} to {epochs}: {run.folder}", file=sys.stderr)
    with tqdm(
        total=epochs * steps, initial=len(records) * steps, desc=name, unit="step", disable=None
    ) as bar:
        for epoch in range(len(records), epochs):
            loss = _epoch(run, name, model, optimizer, stage, pruner, epoch, epochs, bar)
            record = {"stage": name, "epoch": epoch, "loss": loss, **_validated(run, model)}
            record["density"] = 1.0 if pruner is None else pruner.kept / pruner.budget.full
            best = all(record["robust"] >= earlier["robust"] for earlier in records)
            records.append(record)
            run.save_epoch(
                name, model=model, pruner=pruner, optimizer=optimizer, records=records, best=best
            )
            bar.set_postfix(
                loss=f"{loss:.3f}",
                robust=f"{record['robust']:.3f}",
                density=f"{record['density']:.4f}",
            )
    if stage.select == "best":
        best_epoch = run.saved(name, best=True)
        if best_epoch is not None:
            best_epoch.restore(model=model, pruner=pruner)
    return model


def _epoch(
    run: Run,
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: StageConfig,
    pruner: Pruner | None,
    epoch: int,
    epochs: int,
    bar: Any,
) -> float:
    """Train one epoch; return the mean loss."""
    config = run.config
    torch.manual_seed(seed_of(config.seed, name, epoch))
    # Anew for each epoch: what it holds is then a function of the place, and resuming is exact.
    objective = run.objective.build(run.threat, ramp=stage.ramp)
    passes = run.objective.replays if run.objective.name == "free" else 1
    batches = loader(
        run.data.train,
        batch_size=config.data.batch_size,
        seed=seed_of(config.seed, name),
        epoch=epoch,
        shuffle=True,
        workers=config.data.workers,
    )
    steps = len(batches) * passes
    total = 0.0
    model.train()
    for step, (x, y) in enumerate(replay(batches, passes)):
        for group in optimizer.param_groups:
            group["lr"] = cosine(stage.lr, epoch * steps + step, epochs * steps)
        if isinstance(objective, Ramped):
            objective.progress(epoch + step / steps, epochs)
        loss = objective(model, x.to(run.device), y.to(run.device))
        if pruner is not None:
            loss = loss + pruner.budget_penalty()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
        if not math.isfinite(total):
            raise ValueError(
                f"the loss of {name} is {loss.item()} at epoch {epoch}, step {step}; lower its "
                f"learning rate ({stage.lr})."
            )
        bar.update()
    return total / steps


def cosine(lr: float, step: int, steps: int) -> float:
    """Return lr/2 (1 + cos(pi step / steps)): lr at the first step, above zero at the last."""
    return lr / 2 * (1 + math.cos(math.pi * step / steps))


def _optimizer(trained: Any, stage: StageConfig) -> torch.optim.Optimizer:
    if stage.decay_scores:
        trained = [{**group, "weight_decay": stage.weight_decay} for group in trained]
    if stage.optimizer == "adam":
        return torch.optim.Adam(trained, lr=stage.lr, weight_decay=stage.weight_decay)
    return torch.optim.SGD(
        trained, lr=stage.lr, momentum=stage.momentum, weight_decay=stage.weight_decay
    )


def _validated(run: Run, model: nn.Module) -> dict[str, float]:
    """Return clean and robust accuracy on the validation points; the model keeps its mode.

    Robust is proved where the objective trains by bounds, else under PGD.
    """
    certifier = run.config.objective.certifier(run.threat)
    points = loader(
        run.data.validation,
        batch_size=run.config.evaluation.batch_size,
        seed=0,
        epoch=0,
        shuffle=False,
    )
    if certifier is not None:
        report = evaluate(model, points, certifier=certifier)
        return {"clean": report.accuracy(), "robust": report.accuracy("certified")}
    attack = pgd(run.threat, steps=run.config.objective.steps)
    report = evaluate(model, points, attacks=[attack])
    return {"clean": report.accuracy(), "robust": report.accuracy(attack.name)}
