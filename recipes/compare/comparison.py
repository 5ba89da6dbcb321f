"""Compare methods on equal terms.

Same dense networks, equal epochs, and each row with its own tuned learning rate, chosen on the
validation points; the test points are looked at once, at the end.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugin.evaluation.report import Report
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.differences import differences
from robust_plugin.recipes.compare.jobs import Job, jobs_of, settings_of
from robust_plugin.recipes.compare.page import comparison_page
from robust_plugin.recipes.compare.tables import comparison_table, plot_curves, plot_densities
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.pages.plots import plot_kept
from robust_plugin.recipes.papers.registry import execute, train_recipe
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.workers import in_parallel
from robust_plugin.recipes.training.loop import Diverged
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text


def compare(config: CompareConfig, folder: Path) -> str:
    """Run what is left of a comparison; write what it gave into the folder.

    That is report.html, report.json and report.txt, and the plots densities.png, kept.png and
    curves.png.

    Returns:
        str: the table.

    Raises:
        ValueError: for a row with an unknown recipe or setting, before anything is trained.
    """
    dense, jobs = jobs_of(config, folder)
    cells = [(row, density) for density in config.densities for row in config.rows]
    in_parallel(_train_dense, list(dense.values()), jobs=config.jobs, what="dense networks")
    each = [
        [jobs[row, density, seed, lr] for lr in config.lrs]
        for row, density in cells
        for seed in config.seeds
    ]
    validated = dict(
        pair
        for pairs in in_parallel(_tune, each, jobs=config.jobs, what="training")
        for pair in pairs
    )
    chosen: dict[tuple[str, float], tuple[float, list[Job]]] = {}
    diverged: dict[tuple[str, float], tuple[float, ...]] = {}
    for row, density in cells:
        by_lr = {lr: [jobs[row, density, seed, lr] for seed in config.seeds] for lr in config.lrs}
        scores = {
            lr: sum(validated[job.folder] for job in of_seeds) / len(of_seeds)
            for lr, of_seeds in by_lr.items()
        }
        diverged[row, density] = tuple(lr for lr in config.lrs if scores[lr] == -math.inf)
        best = max(scores, key=lambda lr: scores[lr])
        if best in diverged[row, density]:
            raise ValueError(
                f"{row} has diverged at every learning rate, {density:g} kept; lrs is "
                f"{list(config.lrs)}: give lower ones."
            )
        chosen[row, density] = (scores[best], by_lr[best])
    final = [*dense.values(), *(job for _, picked in chosen.values() for job in picked)]
    reports = dict(in_parallel(_measure, final, jobs=config.jobs, what="test points"))
    table = [Cell("dense", 1.0, None, [reports[job.folder] for job in dense.values()], None)]
    for (row, density), (score, picked) in chosen.items():
        found = [reports[job.folder] for job in picked]
        table.append(Cell(row, density, picked[0].lr, found, score, diverged[row, density]))
    return _write(config, folder, table, {cell: picked for cell, (_, picked) in chosen.items()})


def _write(
    config: CompareConfig,
    folder: Path,
    table: Sequence[Cell],
    chosen: Mapping[tuple[str, float], Sequence[Job]],
) -> str:
    data = json.loads((folder / f"seed{config.seeds[0]}/dense/report.json").read_text())["data"]
    threat, settings = str(config.base.threat.build()), settings_of(config)
    text = comparison_table(table, data=data, threat=threat)
    kept = {
        f"{row}, {density:.3g}": json.loads((jobs[0].folder / "report.json").read_text())["kept"]
        for (row, density), jobs in chosen.items()
    }
    curves = {
        f"{100 * density:g} % kept": {
            row: _mean_curve(jobs) for (row, each), jobs in chosen.items() if each == density
        }
        for density in config.densities
    }
    content = {
        "data": data,
        "settings": settings,
        "versions": versions(),
        "cells": [cell.plain() for cell in table],
        "differences": [
            each.plain() for density in config.densities for each in differences(table, density)
        ],
        "kept": kept,
        "curves": curves,
    }
    write_text(folder / "report.json", json.dumps(content, indent=1))
    write_text(folder / "report.txt", text + "\n")
    plots = {name: folder / f"{name}.png" for name in ("densities", "kept", "curves")}
    plot_densities(table, plots["densities"])
    plot_kept(kept, plots["kept"])
    plot_curves(curves, plots["curves"])
    page = comparison_page(
        table,
        title=f"Comparison: {folder.resolve().name}",
        data=data,
        threat=threat,
        settings={**settings, "versions": content["versions"]},
        plots=plots,
    )
    write_text(folder / "report.html", page)
    return text


def _mean_curve(jobs: Sequence[Job]) -> list[float]:
    """Robust accuracy on validation after each epoch of prune and fine-tune, mean over seeds."""
    logs = [(job.folder / "log.jsonl").read_text().splitlines() for job in jobs]
    each = [[json.loads(line)["robust"] for line in log] for log in logs]
    return [sum(values) / len(values) for values in zip(*each, strict=True)]


# --- what runs in the worker processes ---------------------------------------------------------


def _train_dense(job: Job) -> None:
    run = Run(job.folder, job.config)
    target = job.folder / "pretrained.safetensors"
    model = train_recipe(job.recipe, run)
    if not target.is_file():
        run.save_model(model, target)


def _tune(jobs: Sequence[Job]) -> list[tuple[Path, float]]:
    """Train one cell at every learning rate; the prune phase is the same, and run once.

    Of each the robust accuracy on validation, below all others where the training diverged.
    """
    found = []
    for job in jobs:
        if job is not jobs[0]:
            _share_prune_phase(jobs[0].folder, job.folder)
        try:
            train_recipe(job.recipe, Run(job.folder, job.config))
        except Diverged:
            found.append((job.folder, -math.inf))
            continue
        last = next(
            job.folder / f"{stage}.safetensors"
            for stage in ("finetune", "prune")  # fine-tuning may have no epochs
            if (job.folder / f"{stage}.safetensors").is_file()
        )
        records = load(last).meta["records"]
        robust = [record["robust"] for record in records]
        best = getattr(job.config, last.stem).select == "best"
        found.append((job.folder, max(robust) if best else robust[-1]))
    return found


def _share_prune_phase(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for stage in source.glob("prune*.safetensors"):
        if not (target / stage.name).is_file():
            partial = target / f".{stage.name}.partial"
            shutil.copy(stage, partial)
            os.replace(partial, target / stage.name)
    log = target / "log.jsonl"
    if not log.is_file() and (source / "log.jsonl").is_file():
        lines = (source / "log.jsonl").read_text().splitlines(keepends=True)
        write_text(log, "".join(line for line in lines if json.loads(line)["stage"] == "prune"))


def _measure(job: Job) -> tuple[Path, Report]:
    return job.folder, execute(job.recipe, job.config, job.folder)
