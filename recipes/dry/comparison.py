"""Dry run of a comparison: what it would train, and the estimated time.

The estimate is based on a few real training steps of each method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from robust_plugin.recipes.compare.jobs import Job, jobs_of, tuned_seeds
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.dry.measure import Rehearsal, rehearsal
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.runtime.progress import clock
from robust_plugin.runtime.files import check_writable
from robust_plugin.runtime.tables import table


@dataclass(frozen=True)
class _Row:
    """Estimated time of one line in the plan of a comparison: a method, or the dense networks.

    Attributes:
        name: name of the method, or ``"dense"``.
        prune: seconds of a prune phase that comes first, and runs once for all learning rates of a
            network; 0 without one.
        train: seconds of pre-training for the dense networks; for a method, seconds of the other
            phases of one training.
        test: seconds of the evaluation on the test points, for one network, at most.
        networks: number of networks: one per density and seed; one per seed for the dense networks.
        trainings: number of trainings: one per network and learning rate that is tried with it.
    """

    name: str
    prune: float
    train: float
    test: float
    networks: int
    trainings: int

    @property
    def whole(self) -> float:
        """Seconds of all networks; each is tested only at its best learning rate."""
        return self.networks * (self.prune + self.test) + self.trainings * self.train

    def cells(self) -> list[str]:
        """Return name, number of networks and times as text, for the columns of the plan."""
        seconds = (self.prune, self.train, self.test, self.whole)
        return [self.name, str(self.networks), *map(clock, seconds)]


def dry_comparison(config: CompareConfig, out: Path) -> str:
    """Return the plan of a comparison as text: the trainings of each method and the estimated time.

    A few steps of each method are trained, at the first density, seed and learning rate. Nothing is
    written to ``out``.

    Args:
        config: settings of the comparison.
        out: folder that the comparison would write to.

    Raises:
        ValueError: for every mistake that the comparison itself would refuse before it trains.
    """
    check_writable(out)
    dense, jobs = jobs_of(config, out)
    seeds, densities, tuned = len(config.seeds), len(config.densities), len(tuned_seeds(config))
    trainings = densities * (tuned * len(config.lrs) + seeds - tuned)
    first = dense[config.seeds[0]]
    with TemporaryDirectory() as place:
        network = Path(place) / "dense.safetensors"
        with rehearsal(first.recipe, first.config) as (run, model):
            device = run.device
            test = sum(run.test_seconds(model).values())
            rows = [_row(run, first, test, networks=seeds, trainings=seeds)]
            run.save_model(model, network)
        for row in tqdm(config.rows, desc="a few steps of each row", disable=None):
            job = jobs[row, config.densities[0], config.seeds[0], config.lrs[0]]
            on_dense = replace(job, config=replace(job.config, checkpoint=network))
            with rehearsal(job.recipe, on_dense.config) as (run, model):
                test = sum(run.test_seconds(model).values())
                networks = seeds * densities
                rows.append(_row(run, on_dense, test, networks=networks, trainings=trainings))
    return _shown(config, rows, str(device), out)


def _row(run: Rehearsal, job: Job, test: float, *, networks: int, trainings: int) -> _Row:
    """Return the estimated time of a method from one of its trainings.

    Args:
        run: dry run of the training, which has measured all its stages.
        job: the training.
        test: seconds of the evaluation on the test points.
        networks: number of networks of the method.
        trainings: number of trainings of the method.
    """
    stages = RECIPES[job.recipe].stages(job.config)
    seconds = {name: run.stage_seconds(name, stage) for name, stage in stages.items()}
    prune = seconds.pop("prune") if job.prunes_first else 0.0
    return _Row(job.row, prune, sum(seconds.values()), test, networks, trainings)


def _shown(config: CompareConfig, rows: list[_Row], device: str, out: Path) -> str:
    """Return the plan as text.

    Args:
        config: settings of the comparison.
        rows: estimated time of the dense networks, then of each method.
        device: device on which the time was measured.
        out: folder that the comparison would write to.
    """
    axes = {
        ("row", "rows"): config.rows,
        ("density", "densities"): config.densities,
        ("seed", "seeds"): config.seeds,
        ("learning rate", "learning rates"): config.lrs,
    }
    counts = [f"{len(axis)} {names[len(axis) != 1]}" for names, axis in axes.items()]
    trained = sum(row.trainings for row in rows[1:])
    whole = sum(row.whole for row in rows)
    lines = [
        f"compare: {' x '.join(counts)}: {trained:,} trainings after those of the dense; "
        f"{config.base.model}, measured on {device}",
    ]
    header = ["row", "networks", "prune", "train", "test", "in all"]
    lines += table([header, *(row.cells() for row in rows)], align="<>>>>>")
    totals = [["sum", clock(whole)]]
    if config.jobs > 1:
        shared = f"{config.jobs} side by side, if they do not slow one another"
        totals.append([shared, clock(whole / config.jobs)])
    lines += table(totals, align="<>")
    return "\n".join(lines) + f"\nreport.html and the rest go to {out}"
