"""Training of a few steps of each stage of a recipe, with their time and memory.

The recipe itself runs on the real data, in a temporary folder that is deleted at the end. It trains
only a few steps of each stage and evaluates only a few validation points. The times are scaled up
to all steps and points. No test point is loaded.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.recipes.config.schema import RecipeConfig, StageConfig
from robust_plugin.recipes.data.batches import batches_of
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.evaluate.expected_time import expected_times, sampled
from robust_plugin.recipes.evaluate.plan import plan_of_run
from robust_plugin.recipes.evaluate.security_curve import CURVE_TASK
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.runtime.progress import RunProgress
from robust_plugin.recipes.training.length import length_of
from robust_plugin.recipes.training.run import Run

STEPS = 3  # training steps per stage; the first is a warm-up, and its time is not counted
_POINTS = 64  # validation points for timing the attack of the report, on a CPU
_ATTACK_STEPS = 2  # attack steps for timing it


class Stopwatch(RunProgress):
    """Measures the time of each step and the memory of each stage, in place of a progress bar.

    Args:
        stages: number of optimizer steps of each stage by name, in the order they are trained.
        device: device whose memory is measured.
    """

    def __init__(self, stages: Mapping[str, int], device: torch.device) -> None:
        super().__init__(stages)
        self.times: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}  # bytes
        self.device = device
        self._name = ""

    @contextmanager
    def stage(self, name: str, *, epochs: int, steps: int, done: int) -> Iterator[None]:
        """Within the context, measure the time of the steps and the peak memory of one stage.

        Args:
            name: name of the stage.
            epochs: not used.
            steps: not used.
            done: not used.
        """
        self._name = name
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.times[name] = [time.perf_counter()]
        yield
        self.peaks[name] = _peak(self.device)

    def show(self, **values: str) -> None:
        """Show nothing."""

    def update(self) -> None:
        """Record the time at the end of one step.

        A GPU has finished the step by now, because the training loop has read its loss.
        """
        self.times[self._name].append(time.perf_counter())

    def seconds(self, name: str) -> float:
        """Return the mean seconds per step of a stage, without the first step if there are more.

        Args:
            name: name of the stage.
        """
        moments = self.times[name][1:] if len(self.times[name]) > 2 else self.times[name]
        return (moments[-1] - moments[0]) / (len(moments) - 1)


class Rehearsal(Run):
    """Run that trains a few steps per stage and measures their time and memory.

    Args:
        folder: folder of the run.
        config: settings of the recipe; ``tracker`` is ignored.
    """

    def __init__(self, folder: Path, config: RecipeConfig) -> None:
        super().__init__(folder, replace(config, tracker="none"))
        self.steps = STEPS
        self.watch = Stopwatch({}, self.device)
        self.validation: dict[str, float] = {}

    def begin(self, steps: Mapping[str, int]) -> None:
        """Start to measure the stages.

        Args:
            steps: number of optimizer steps of each stage by name, in the order they are trained.
        """
        self.progress = self.watch = Stopwatch(steps, self.device)

    @contextmanager
    def timed(self, stage: str, what: str) -> Iterator[None]:
        """Within the context, measure the time of a validation.

        Args:
            stage: name of the stage that the validation belongs to.
            what: not used.
        """
        before = time.perf_counter()
        yield
        self.validation[stage] = time.perf_counter() - before

    def validation_seconds(self, stage: str) -> float:
        """Return the estimated seconds for one validation of a stage on all validation points."""
        n = len(self.data.validation)  # type: ignore[arg-type]
        measured = min(self.config.evaluation.batch_size, self.config.data.batch_size, n)
        return self.validation[stage] * n / measured

    def stage_seconds(self, name: str, stage: StageConfig) -> float:
        """Return the estimated seconds for a whole stage, including its validations.

        Args:
            name: name of the stage.
            stage: settings of the stage.
        """
        length = length_of(self, stage)
        validation = length.epochs * self.validation_seconds(name)
        return length.steps * self.watch.seconds(name) + validation

    def test_seconds(self, model: nn.Module) -> dict[str, float]:
        """Return the estimated seconds of each part of the evaluation on the test points.

        These are upper bounds, since attacks skip points that are already fooled, and proofs those
        that the network classifies wrongly.

        Args:
            model: network that is attacked.
        """
        evaluation, points = self.config.evaluation, len(self.data.test)  # type: ignore[arg-type]
        name = f"PGD-{evaluation.steps}" + f"x{evaluation.restarts}" * (evaluation.restarts > 1)
        passes = points * evaluation.steps * evaluation.restarts
        plan, step = plan_of_run(self), _attack_seconds(self, model)
        found = {f"{name} on {points:,} test points": step * passes}
        if plan.curve:
            part = f"{CURVE_TASK} on {plan.curve:,} test points"
            found[part] = step * plan.curve * plan.curve_steps
        plan = replace(plan, steps=0, curve=0)
        if plan.autoattack or plan.verify or plan.smooth:
            sample = sampled(model.eval(), self.data.validation, self.threat, plan, trained=False)
            for each in expected_times(sample, plan, classes=self.data.classes):
                part = f"{each.what.partition(':')[0]} on {each.points:,} test points"
                found[part] = found.get(part, 0.0) + each.seconds
        return found


@contextmanager
def rehearsal(recipe: str, config: RecipeConfig) -> Iterator[tuple[Rehearsal, nn.Module]]:
    """Train a few steps of every stage of a recipe; this is a context manager.

    The context yields the run and its final network. At the end of the context, the folder of the
    run is deleted.

    Args:
        recipe: gradual, magnitude, hydra, harp or dense.
        config: settings of the recipe.

    Raises:
        ValueError: for every mistake that the recipe itself would refuse, or if torchrun started
            several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--dry-run measures one process; leave torchrun out.")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. that rates miss the budget, after a few steps
        run = Rehearsal(Path(place) / "run", config)
        yield run, train_recipe(recipe, run)


def _attack_seconds(run: Run, model: nn.Module) -> float:
    """Return the estimated seconds of one step of PGD on one point, measured on validation points.

    A GPU takes nearly as long for a few points as for a whole batch, so a whole batch is timed. It
    takes much longer for its first batch, so the attack runs once before it is timed. The estimate
    is 0 if eps is 0 or the norm is L1.

    Args:
        run: dry run whose validation points and threat model are used.
        model: network that is attacked.
    """
    points, on_gpu = run.data.validation, run.device.type == "cuda"
    size = run.config.evaluation.batch_size if on_gpu else _POINTS
    count = len(batches_of(points, batch_size=size, seed=0, epoch=0, shuffle=False)[0])
    batch = next(iter(loader(points, batch_size=count, seed=0, epoch=0, shuffle=False)))
    if run.threat.eps == 0 or run.threat.norm == "L1":
        return 0.0
    attack = pgd(run.threat, steps=_ATTACK_STEPS)
    if on_gpu:
        evaluate(model, [batch], attacks=[attack])
    before = time.perf_counter()
    evaluate(model, [batch], attacks=[attack])
    return (time.perf_counter() - before) / count / _ATTACK_STEPS


def _peak(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or else of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
