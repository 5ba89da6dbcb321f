"""Dry run of a recipe: its stages, the estimated time and memory, and the files it would write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.catalogue.run_files import files_of
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.dry.measure import STEPS, Rehearsal, rehearsal
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.runtime.progress import clock
from robust_plugin.recipes.training.length import length_of
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import kept_channels
from robust_plugin.runtime.files import check_writable
from robust_plugin.runtime.tables import table


def dry_run(recipe: str, config: RecipeConfig, out: Path) -> str:
    """Return the plan of a recipe as text: stages, time, memory, kept weights, and files.

    Args:
        recipe: gradual, magnitude, hydra, harp or dense.
        config: settings of the recipe.
        out: folder that the run would write to; the dry run writes nothing to it.

    Raises:
        ValueError: for every mistake that the recipe itself would refuse, or if torchrun started
            several processes.
    """
    check_writable(out)
    with rehearsal(recipe, config) as (run, model):
        tested = run.test_seconds(model)
        kept = _kept(run, model)
        run.save_model(model, run.folder / "model.safetensors")
        sizes = {path.name: path.stat().st_size for path in run.folder.iterdir()}
    return "\n\n".join(
        [
            _stages(recipe, run, tested),
            kept,
            f"files in {out}:\n{_files(config, sizes)}",
        ]
    )


def _stages(recipe: str, run: Rehearsal, tested: Mapping[str, float]) -> str:
    """Return the table of stages as text, with their steps, time and memory.

    Args:
        recipe: gradual, magnitude, hydra, harp or dense.
        run: dry run that has measured the stages.
        tested: estimated seconds of each part of the evaluation on the test points.
    """
    config = run.config
    pattern = getattr(config, "pattern", "none")
    share = f"density {config.density:g}"
    if pattern[0].isdigit():  # the pattern replaces the density
        share = f"pattern {pattern}"
    lines = [
        f"{recipe}: {config.model} on {run.data.name}, {config.objective.name}, {run.threat}, "
        f"{share}; measured on {run.device}, {STEPS} steps per stage",
    ]
    rows = [["stage", "epochs", "steps", "s per step", "memory", "validation", "in all"]]
    whole = sum(tested.values())
    for name, stage in RECIPES[recipe].stages(config).items():
        length, total = length_of(run, stage), run.stage_seconds(name, stage)
        whole += total
        rows.append(
            [
                name,
                f"{length.epochs:,}",
                f"{length.steps:,}",
                f"{run.watch.seconds(name):.3f}",
                f"{run.watch.peaks[name] / 1e9:.1f} GB",
                clock(run.validation_seconds(name)),
                clock(total),
            ]
        )
    lines += table(rows, align="<>>>>>>")
    totals = [[f"{part}, at most", clock(seconds)] for part, seconds in tested.items()]
    lines += table([*totals, ["sum", clock(whole)]], align="<>")
    kind = "of the GPU" if run.device.type == "cuda" else "of this process"
    lines.append(f"memory: {kind}, at its peak so far")
    return "\n".join(lines)


def _kept(run: Run, model: nn.Module) -> str:
    """Return a table of how many weights each layer keeps, or how many channels each group."""
    if run.config.structure == "channels":
        counts = [(name, kept, size) for name, (kept, size) in kept_channels(run).items()]
    else:
        found = sparsity(model, run.example)
        counts = [(layer.name, layer.kept, layer.size) for layer in found.layers]
    total, full = sum(kept for _, kept, _ in counts), sum(size for *_, size in counts)
    lines = [f"kept {total:,} of {full:,} {run.config.structure} ({100 * total / full:.3g} %)"]
    cells = [["", name, f"{kept:,} of {size:,}"] for name, kept, size in counts]
    lines += table(cells, align="<<>")
    return "\n".join(lines)


def _files(config: RecipeConfig, sizes: dict[str, int]) -> str:
    """Return one line per file that the run would write, with its description.

    Args:
        config: settings of the recipe.
        sizes: sizes in bytes by file name, for the files whose size is known.
    """
    names = [*sizes, "report.html", "report.json", "kept.png", "examples.safetensors"]
    names += ["before_after.json", "before_after.txt"]
    names += ["smoothing.txt", "smoothing.png"] * bool(config.evaluation.smooth)
    names += [config.tracker] * (config.tracker != "none")
    return files_of(names, sizes=sizes)
