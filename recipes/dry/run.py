"""What a recipe would do, take and write, from a few real steps of each of its stages.

The recipe itself runs, on the real data, in a folder that is thrown away; a few steps of one epoch
stand for a stage, and a few validation points for all. The test points are not looked at.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.catalogue.folder import files_of
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.data.batches import batches_of
from robust_plugin.recipes.data.datasets import loader
from robust_plugin.recipes.papers.registry import stages_of, train_recipe
from robust_plugin.recipes.runtime.progress import Progress, clock
from robust_plugin.recipes.training.run import Run, length_of
from robust_plugin.recipes.training.structure import kept_channels

_STEPS = 3  # of each stage; the first warms up and does not count
_POINTS = 64  # validation points that the attack of the report is timed on, on a CPU
_ATTACK_STEPS = 2


class Stopwatch(Progress):
    """Takes the time of each step, and the memory of each stage, instead of showing a bar."""

    def __init__(self, stages: Mapping[str, int], device: torch.device) -> None:
        super().__init__(stages)
        self.times: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}  # bytes
        self.device = device
        self._name = ""

    @contextmanager
    def stage(self, name: str, *, steps: int, done: int, folder: Path) -> Iterator[None]:
        """Begin a stage."""
        self._name = name
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.times[name] = [time.perf_counter()]
        yield
        self.peaks[name] = _peak(self.device)

    def update(self) -> None:
        """Take the time of one step; the loss has been read, so that a GPU has come to its end."""
        self.times[self._name].append(time.perf_counter())

    def seconds(self, name: str) -> float:
        """Return the time of a step of a stage, without the first where there are more."""
        moments = self.times[name][1:] if len(self.times[name]) > 2 else self.times[name]
        return (moments[-1] - moments[0]) / (len(moments) - 1)


class Rehearsal(Run):
    """A run of a few steps a stage, which measures itself."""

    def __init__(self, folder: Path, config: RecipeConfig) -> None:
        super().__init__(folder, dataclasses.replace(config, tracker="none"))
        self.steps = _STEPS
        self.watch = Stopwatch({}, self.device)
        self.validation: dict[str, float] = {}

    def begin(self, steps: Mapping[str, int]) -> None:
        """Measure instead of showing a bar."""
        self.progress = self.watch = Stopwatch(steps, self.device)

    @contextmanager
    def timed(self, stage: str, what: str) -> Iterator[None]:
        """Take the time of a validation."""
        before = time.perf_counter()
        yield
        self.validation[stage] = time.perf_counter() - before

    def validation_seconds(self, stage: str) -> float:
        """Return how long all validation points take, from those that were looked at."""
        n = len(self.data.validation)  # type: ignore[arg-type]
        looked_at = min(self.config.evaluation.batch_size, self.config.data.batch_size, n)
        return self.validation[stage] * n / looked_at

    def stage_seconds(self, name: str, stage: StageConfig) -> float:
        """Return how long a whole stage takes, its validations included."""
        length = length_of(self, stage)
        validation = length.epochs * self.validation_seconds(name)
        return length.steps * self.watch.seconds(name) + validation

    def test_seconds(self, model: nn.Module) -> float:
        """Return how long the report's own attack takes on all test points, at most."""
        of, tested = self.config.evaluation, len(self.data.test)  # type: ignore[arg-type]
        return _attack_seconds(self, model) * tested * of.steps * of.restarts


@contextmanager
def rehearsal(recipe: str, config: RecipeConfig) -> Iterator[tuple[Rehearsal, nn.Module]]:
    """Run a few steps of every stage, in a folder that is gone afterwards.

    Args:
        recipe: magnitude, hydra, harp or dense.
        config: its settings.

    Raises:
        ValueError: whatever the recipe itself would raise, or under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--dry-run measures one process; leave torchrun out.")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rates that a few steps bring nowhere
        run = Rehearsal(Path(place) / "run", config)
        yield run, train_recipe(recipe, run)


def dry_run(recipe: str, config: RecipeConfig, out: Path) -> str:
    """Return the plan of a recipe: stages, time, memory, what is kept, and the files.

    Args:
        recipe: magnitude, hydra, harp or dense.
        config: its settings.
        out: where the run would write; nothing is written there now.

    Raises:
        ValueError: whatever the recipe itself would raise, or under torchrun.
    """
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


def _stages(recipe: str, run: Rehearsal, tested: float) -> str:
    config = run.config
    pattern = getattr(config, "pattern", "none")
    share = f"density {config.density:g}"
    if recipe == "hydra" and pattern != "none":  # which is in the place of the density
        share = f"pattern {pattern}"
    lines = [
        f"{recipe}: {config.model} on {run.data.name}, {config.objective.name}, {run.threat}, "
        f"{share}; measured on {run.device}, {_STEPS} steps a stage",
        f"{'stage':<14}{'epochs':>8}{'steps':>10}{'s a step':>10}{'memory':>10}"
        f"{'validation':>12}{'in all':>14}",
    ]
    whole = tested
    for name, stage in stages_of(recipe, config).items():
        length, total = length_of(run, stage), run.stage_seconds(name, stage)
        whole += total
        lines.append(
            f"{name:<14}{length.epochs:>8,}{length.steps:>10,}{run.watch.seconds(name):>10.3f}"
            f"{f'{run.watch.peaks[name] / 1e9:.1f} GB':>10}"
            f"{clock(run.validation_seconds(name)):>12}{clock(total):>14}"
        )
    of, points = config.evaluation, len(run.data.test)  # type: ignore[arg-type]
    name = f"PGD-{of.steps}" + f"x{of.restarts}" * (of.restarts > 1)
    lines.append(f"{f'{name} on {points:,} test points, at most':<64}{clock(tested):>14}")
    lines.append(f"{'sum':<64}{clock(whole):>14}")
    kind = "of the GPU" if run.device.type == "cuda" else "of this process"
    lines.append(f"memory: {kind}, at its peak so far")
    return "\n".join(lines) + not_measured(config)


def not_measured(config: RecipeConfig) -> str:
    """Return a line, after a line break, of what an estimate leaves out; or nothing."""
    of = config.evaluation
    more = {"AutoAttack": of.autoattack, "proofs": of.verify, "smoothing": of.smooth}
    besides = [f"{what} of {count:,} points" for what, count in more.items() if count]
    return f"\nnot measured: {', '.join(besides)}" if besides else ""


def _attack_seconds(run: Run, model: nn.Module) -> float:
    """Return the time of one attack step on one point, from validation points.

    A GPU takes nearly as long for a few points as for a batch, and for the first batch much longer.
    """
    points, on_gpu = run.data.validation, run.device.type == "cuda"
    size = run.config.evaluation.batch_size if on_gpu else _POINTS
    few = len(batches_of(points, batch_size=size, seed=0, epoch=0, shuffle=False)[0])
    batch = next(iter(loader(points, batch_size=few, seed=0, epoch=0, shuffle=False)))
    if run.threat.eps == 0 or run.threat.norm == "L1":
        return 0.0
    attack = pgd(run.threat, steps=_ATTACK_STEPS)
    if on_gpu:
        evaluate(model, [batch], attacks=[attack])
    before = time.perf_counter()
    evaluate(model, [batch], attacks=[attack])
    return (time.perf_counter() - before) / few / _ATTACK_STEPS


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


def _kept(run: Run, model: nn.Module) -> str:
    if run.config.structure == "channels":
        counts = [(name, kept, size) for name, (kept, size) in kept_channels(run).items()]
    else:
        table = sparsity(model, run.example)
        counts = [(layer.name, layer.kept, layer.size) for layer in table.layers]
    width = max(len(name) for name, *_ in counts)
    total, full = sum(kept for _, kept, _ in counts), sum(size for *_, size in counts)
    lines = [f"kept {total:,} of {full:,} {run.config.structure} ({100 * total / full:.3g} %)"]
    lines += [f"  {name:<{width}}  {kept:>12,} of {size:>12,}" for name, kept, size in counts]
    return "\n".join(lines)


def _files(config: RecipeConfig, sizes: dict[str, int]) -> str:
    names = [*sizes, "report.json", "kept.png"]
    names += ["smoothing.txt", "smoothing.png"] * bool(config.evaluation.smooth)
    names += ["before_after.json", "before_after.txt"] * (config.structure == "channels")
    names += [config.tracker] * (config.tracker != "none")
    return files_of(names, sizes=sizes)
