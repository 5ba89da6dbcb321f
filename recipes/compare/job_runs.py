"""What a worker process of a comparison does: it trains networks and measures them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from robust_plugin.evaluation.report import Report
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.compare.jobs import Job
from robust_plugin.recipes.papers.registry import execute, train_recipe
from robust_plugin.recipes.training.loop import Diverged
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import replacing, write_text


def train_dense(job: Job) -> None:
    """Train a dense network and write pretrained.safetensors, unless that file exists."""
    run = Run(job.folder, job.config)
    target = job.folder / "pretrained.safetensors"
    model = train_recipe(job.recipe, run)
    if not target.is_file():
        run.save_model(model, target)


def tune(jobs: Sequence[Job]) -> list[tuple[Path, float]]:
    """Train one method at every learning rate.

    A prune phase that comes first does not depend on the learning rate of fine-tuning: the first
    training runs it, and the other trainings copy its result.

    Args:
        jobs: trainings of one method, density and seed, one per learning rate.

    Returns:
        list: pairs of a run folder and the robust accuracy on the validation points, in [0, 1];
        the accuracy is minus infinity if the training diverged.
    """
    found = []
    for job in jobs:
        if job is not jobs[0] and job.prunes_first:
            share_prune_phase(jobs[0].folder, job.folder)
        try:
            train_recipe(job.recipe, Run(job.folder, job.config))
        except Diverged:
            found.append((job.folder, -math.inf))
            continue
        last = next(
            job.folder / f"{stage}.safetensors"
            for stage in ("finetune", "prune")  # there is no finetune stage with 0 epochs
            if (job.folder / f"{stage}.safetensors").is_file()
        )
        if getattr(job.config, last.stem).select == "best":
            last = last.with_suffix(".best.safetensors")
        found.append((job.folder, load(last).meta["records"][-1]["robust"]))
    return found


def share_prune_phase(source: Path, target: Path) -> None:
    """Copy the checkpoints and log lines of the prune phase, unless the other run has its own.

    Args:
        source: run folder with the results of the prune phase.
        target: run folder to copy to; it is created if it does not exist.
    """
    target.mkdir(parents=True, exist_ok=True)
    for stage in source.glob("prune*.safetensors"):
        if not (target / stage.name).is_file():
            with replacing(target / stage.name) as partial:
                shutil.copy(stage, partial)
    log = target / "log.jsonl"
    if not log.is_file() and (source / "log.jsonl").is_file():
        lines = (source / "log.jsonl").read_text().splitlines(keepends=True)
        write_text(log, "".join(line for line in lines if json.loads(line)["stage"] == "prune"))


def measure(job: Job) -> tuple[Path, Report]:
    """Evaluate the network of a training on the test points; return its run folder and report."""
    return job.folder, execute(job.recipe, job.config, job.folder)
