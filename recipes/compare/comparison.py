"""The command ``compare``: train methods on equal terms and measure them on the same test points.

For each seed, all methods (the rows of the comparison) start from the same dense network and train
for the same number of epochs. Each method gets its own learning rate, chosen on the validation
points. The test points are used once, at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.differences import differences
from robust_plugin.recipes.compare.job_runs import measure, train_dense, tune
from robust_plugin.recipes.compare.jobs import Job, Jobs, jobs_of, settings_of, tuned_seeds
from robust_plugin.recipes.compare.page import BestNetwork, comparison_page, main_measure
from robust_plugin.recipes.compare.plots import plot_curves, plot_densities
from robust_plugin.recipes.compare.security_curves import mean_line, shown_curves, stored_curves
from robust_plugin.recipes.compare.tables import comparison_table
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.evaluate.run_facts import attacked_of, examples_of
from robust_plugin.recipes.pages.plots import draw_kept, plot_panels
from robust_plugin.recipes.runtime.library_versions import versions
from robust_plugin.recipes.runtime.workers import in_parallel
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text


def compare(config: CompareConfig, folder: Path, *, command: str = "") -> str:
    """Run a comparison, or the rest of an interrupted one, and write its report.

    Writes report.html, report.json and report.txt, and the plots densities.png, kept.png and
    curves.png.

    Args:
        config: settings of the comparison.
        folder: folder of the comparison, with one run folder per training.
        command: command line of the comparison, for report.html; empty if it is not known.

    Returns:
        str: the results as a Markdown table. It has one line per method and density and one
        column per kind of accuracy (clean, attacks, certified), in per cent. Below it are the
        paired differences between the methods.

    Raises:
        ValueError: for a method with an unknown recipe or setting, before anything is trained; or
            if a method diverges at every learning rate.
    """
    dense, jobs = jobs_of(config, folder)
    cells = [(row, density) for density in config.densities for row in config.rows]
    in_parallel(train_dense, list(dense.values()), jobs=config.jobs, what="dense networks")
    to_train = [
        [jobs[row, density, seed, lr] for lr in config.lrs]
        for row, density in cells
        for seed in tuned_seeds(config)
    ]
    accuracies: dict[Path, float] = {}
    while to_train:  # again for the other seeds, at the chosen rate, and if one of them diverges
        pairs = in_parallel(tune, to_train, jobs=config.jobs, what="training")
        accuracies |= dict(pair for each in pairs for pair in each)
        chosen = {cell: _choose_rate(config, jobs, accuracies, *cell) for cell in cells}
        trained = [job for choice in chosen.values() for job in choice.jobs]
        to_train = [[job] for job in trained if job.folder not in accuracies]
    final = [*dense.values(), *(job for choice in chosen.values() for job in choice.jobs)]
    reports = dict(in_parallel(measure, final, jobs=config.jobs, what="test points"))
    table = [Cell("dense", 1.0, None, [reports[job.folder] for job in dense.values()], None)]
    for (row, density), choice in chosen.items():
        found = [reports[job.folder] for job in choice.jobs]
        lr = choice.jobs[0].lr
        epochs = len((choice.jobs[0].folder / "log.jsonl").read_text().splitlines())
        table.append(Cell(row, density, lr, found, choice.accuracy, choice.diverged, epochs))
    jobs_by_cell = {cell: choice.jobs for cell, choice in chosen.items()}
    return _write(config, folder, table, jobs_by_cell, command)


@dataclass(frozen=True)
class _Choice:
    """The best learning rate for one method at one density.

    The best rate is that with the highest robust accuracy on the validation points.

    Attributes:
        jobs: trainings at the best learning rate, one per seed.
        accuracy: robust accuracy on the validation points at that rate, in [0, 1], mean over the
            seeds on which the rate is chosen.
        diverged: learning rates at which the training of at least one seed diverged.
    """

    jobs: list[Job]
    accuracy: float
    diverged: tuple[float, ...]


def _choose_rate(
    config: CompareConfig,
    jobs: Jobs,
    accuracies: Mapping[Path, float],
    row: str,
    density: float,
) -> _Choice:
    """Return the learning rate at which a method has the best robust accuracy on validation points.

    The accuracy is averaged over the seeds on which rates are chosen. A rate at which the training
    of any seed diverged is not chosen.

    Args:
        config: settings of the comparison.
        jobs: all trainings of the comparison.
        accuracies: robust accuracy on the validation points by run folder, for the trainings that
            were made so far; minus infinity for one that diverged.
        row: name of the method.
        density: share of weights kept.

    Raises:
        ValueError: if the method diverged at every learning rate.
    """
    by_lr = {lr: [jobs[row, density, seed, lr] for seed in config.seeds] for lr in config.lrs}
    tuned = tuned_seeds(config)
    means = {
        lr: sum(accuracies[jobs[row, density, seed, lr].folder] for seed in tuned) / len(tuned)
        for lr in config.lrs
    }
    diverged = tuple(
        lr for lr in config.lrs if -math.inf in {accuracies.get(job.folder) for job in by_lr[lr]}
    )
    means |= dict.fromkeys(diverged, -math.inf)
    best = max(means, key=lambda lr: means[lr])
    if best in diverged:
        raise ValueError(
            f"{row} has diverged at every learning rate, {density:g} kept; lrs is "
            f"{list(config.lrs)}: give lower ones."
        )
    return _Choice(by_lr[best], means[best], diverged)


def _write(
    config: CompareConfig,
    folder: Path,
    table: Sequence[Cell],
    chosen: Mapping[tuple[str, float], Sequence[Job]],
    command: str,
) -> str:
    """Write the reports and plots of a comparison, and return the text of report.txt.

    Args:
        config: settings of the comparison.
        folder: folder of the comparison.
        table: the dense network's cell and the cells of all methods.
        chosen: trainings at the chosen learning rate, one per seed, by method and density.
        command: command line of the comparison.
    """
    data = json.loads((folder / f"seed{config.seeds[0]}/dense/report.json").read_text())["data"]
    threat, settings = str(config.base.threat.build()), settings_of(config)
    text = comparison_table(table, data=data, threat=threat)
    kept = {
        f"{100 * density:g} % kept": {
            row: json.loads((jobs[0].folder / "report.json").read_text())["kept"]
            for (row, each), jobs in chosen.items()
            if each == density
        }
        for density in config.densities
    }
    curves = {
        f"{100 * density:g} % kept": {
            row: _mean_curve(jobs) for (row, each), jobs in chosen.items() if each == density
        }
        for density in config.densities
    }
    least = min(config.densities)
    dense = [folder / f"seed{seed}" / "dense" for seed in config.seeds]
    pruned = {
        row: [job.folder for job in jobs] for (row, each), jobs in chosen.items() if each == least
    }
    security = stored_curves({"dense": dense, **pruned}) if config.base.evaluation.curve else {}
    content = {
        "data": data,
        "settings": settings,
        "versions": versions(),
        "cells": [cell.plain() for cell in table],
        "differences": [
            each.plain() for density in config.densities for each in differences(table, density)
        ],
        "kept": {
            f"{row}, {density:.3g}": kept[f"{100 * density:g} % kept"][row]
            for row, density in chosen
        },
        "curves": curves,
        # [accuracy, both ends of its interval] at 0, 1/2, 1, 2 and 4 eps, at the smallest density
        "security_curves": {row: mean_line(each) for row, each in security.items()},
    }
    write_text(folder / "report.json", json.dumps(content, indent=1))
    write_text(folder / "report.txt", text + "\n")
    plots = {name: folder / f"{name}.png" for name in ("densities", "kept", "curves")}
    plot_densities(table, plots["densities"])
    by_layer = {title: partial(draw_kept, kept=rows) for title, rows in kept.items()}
    plot_panels(by_layer, plots["kept"])
    plot_curves(curves, plots["curves"])
    page = comparison_page(
        table,
        title=f"Comparison: {folder.resolve().name}",
        data=data,
        threat=threat,
        settings=settings,
        kept=kept,
        curves=curves,
        security=shown_curves(security, least),
        best=_best_network(table, chosen),
        command=command,
        versions=content["versions"],
    )
    write_text(folder / "report.html", page)
    return text


def _best_network(
    table: Sequence[Cell], chosen: Mapping[tuple[str, float], Sequence[Job]]
) -> BestNetwork:
    """Return predictions and examples of the pruned network with the highest robust accuracy.

    They are those of the first seed.

    Args:
        table: the dense network's cell and the cells of all methods.
        chosen: trainings at the chosen learning rate, one per seed, by method and density.
    """
    measure = main_measure(table)
    pruned = [cell for cell in table if cell.lr is not None]
    best = max(pruned, key=lambda cell: cell.interval(measure)[0])
    job = chosen[best.row, best.density][0]
    content = json.loads((job.folder / "report.json").read_text())
    return BestNetwork(
        best,
        attacked_of(content.get("attacked"), best.reports[0]),
        examples_of(job.folder / "examples.safetensors"),
        Run(job.folder, job.config).data.class_names,
    )


def _mean_curve(jobs: Sequence[Job]) -> list[float]:
    """Return the robust accuracy on the validation points after each epoch, mean over seeds.

    The epochs are those of pruning and fine-tuning; the accuracies are in [0, 1].

    Args:
        jobs: trainings of one method, density and learning rate, one per seed.
    """
    logs = [(job.folder / "log.jsonl").read_text().splitlines() for job in jobs]
    each = [[json.loads(line)["robust"] for line in log] for log in logs]
    return [sum(values) / len(values) for values in zip(*each, strict=True)]
