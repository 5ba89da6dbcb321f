"""What a comparison would train, and how long it takes, from a few real steps of every row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from robust_plugin.recipes.compare.jobs import Job, jobs_of
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.dry.run import Rehearsal, not_measured, rehearsal
from robust_plugin.recipes.papers.registry import stages_of
from robust_plugin.recipes.runtime.progress import clock


@dataclass(frozen=True)
class _Row:
    """What one network of a row takes, in seconds.

    Attributes:
        name: of the row.
        prune: the prune phase, which all learning rates share.
        train: pre-training of a dense network; else fine-tuning at one learning rate.
        test: the report's attack on all test points.
        networks: how many there are, over densities and seeds.
        rates: how many learning rates each is tuned over.
    """

    name: str
    prune: float
    train: float
    test: float
    networks: int
    rates: int

    @property
    def whole(self) -> float:
        """All of it; only the network at the chosen rate sees the test points."""
        return self.networks * (self.prune + self.rates * self.train + self.test)

    def line(self, width: int) -> str:
        """Return the row of the table."""
        each = "".join(f"{clock(value):>11}" for value in (self.prune, self.train, self.test))
        return f"{self.name:<{width}}{self.networks:>10}{each}{clock(self.whole):>14}"


def dry_comparison(config: CompareConfig, out: Path) -> str:
    """Return the plan of a comparison: its trainings, row by row, and their time.

    Every row takes a few steps, at its first density, seed and rate; nothing is written.

    Args:
        config: rows, densities, seeds, rates and how many jobs run side by side.
        out: where the comparison would write.

    Raises:
        ValueError: whatever the comparison itself would raise before it trains.
    """
    dense, jobs = jobs_of(config, out)
    seeds, densities, rates = len(config.seeds), len(config.densities), len(config.lrs)
    first = dense[config.seeds[0]]
    with TemporaryDirectory() as place:
        network = Path(place) / "dense.safetensors"
        with rehearsal(first.recipe, first.config) as (run, model):
            device = run.device
            table = [_row(run, first, run.test_seconds(model), networks=seeds, rates=1)]
            run.save_model(model, network)
        for row in tqdm(config.rows, desc="a few steps of each row", disable=None):
            job = jobs[row, config.densities[0], config.seeds[0], config.lrs[0]]
            begun = replace(job, config=replace(job.config, checkpoint=network))
            with rehearsal(job.recipe, begun.config) as (run, model):
                test = run.test_seconds(model)
                table.append(_row(run, begun, test, networks=seeds * densities, rates=rates))
    return _shown(config, table, str(device), out)


def _row(run: Rehearsal, job: Job, test: float, *, networks: int, rates: int) -> _Row:
    stages = stages_of(job.recipe, job.config)
    seconds = {name: run.stage_seconds(name, stage) for name, stage in stages.items()}
    prune = seconds.pop("prune", 0.0)
    return _Row(job.row, prune, sum(seconds.values()), test, networks, rates)


def _shown(config: CompareConfig, table: list[_Row], device: str, out: Path) -> str:
    axes = {
        ("row", "rows"): config.rows,
        ("density", "densities"): config.densities,
        ("seed", "seeds"): config.seeds,
        ("learning rate", "learning rates"): config.lrs,
    }
    counts = [f"{len(axis)} {names[len(axis) != 1]}" for names, axis in axes.items()]
    trained = sum(row.networks * row.rates for row in table[1:])
    width = 2 + max(len(row.name) for row in table)
    whole = sum(row.whole for row in table)
    lines = [
        f"compare: {' x '.join(counts)}: {trained:,} trainings after those of the dense; "
        f"{config.base.model}, measured on {device}",
        f"{'row':<{width}}{'networks':>10}{'prune':>11}{'train':>11}{'test':>11}{'in all':>14}",
        *(row.line(width) for row in table),
        f"{'sum':<{width + 43}}{clock(whole):>14}",
    ]
    if config.jobs > 1:
        shared = f"{config.jobs} side by side, if they do not slow one another"
        lines.append(f"{shared:<{width + 43}}{clock(whole / config.jobs):>14}")
    return "\n".join(lines) + not_measured(config.base) + f"\nreport.html and the rest go to {out}"
