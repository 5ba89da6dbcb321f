"""Recipes on channels: what a mask covers, the network that is left, and a table of both.

A setting of the recipes and no command of its own: the phases, the objective and the budget are the
papers', and only what shares a score differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.budget.costs import total_multiply_adds
from robust_plugin.evaluation.evaluation import evaluate
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.data.datasets import loader
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.training.run import Run, dense_weights
from robust_plugin.recipes.training.structure import small_network
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of
from robust_plugin.runtime.timing import alternating

# Inputs in a forward pass whose latency is measured.
_BATCHES = (1, 64)


@dataclass(frozen=True)
class Measured:
    """One network of the table before and after.

    Attributes:
        parameters: in all.
        multiply_adds: of one example.
        bytes: of its state as float32 in a file.
        milliseconds: of one forward pass by batch size, on this machine.
        report: clean and robust accuracy on the test points.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    milliseconds: dict[int, float]
    report: Report


@dataclass(frozen=True)
class BeforeAfter:
    """The dense network and the one without channels, in numbers."""

    dense: Measured
    small: Measured
    device: str
    threads: int

    def __str__(self) -> str:
        """Return the table; the last column is small over dense."""
        before, after = self.dense, self.small
        rows: list[tuple[str, float, float, str]] = [
            ("parameters", before.parameters, after.parameters, ",.0f"),
            ("multiply-adds", before.multiply_adds, after.multiply_adds, ",.0f"),
            ("file, bytes", before.bytes, after.bytes, ",.0f"),
        ]
        for batch, each in before.milliseconds.items():
            rows.append((f"ms at batch {batch}", each, after.milliseconds[batch], ".3f"))
        lines = [f"{'':<18}{'dense':>14}{'pruned':>14}{'ratio':>8}"]
        lines += [f"{name:<18}{a:>14{form}}{b:>14{form}}{b / a:>8.3f}" for name, a, b, form in rows]
        for row in before.report.rows:
            a, b = (100 * each.report.accuracy(row) for each in (before, after))
            lines.append(f"{row + ', %':<18}{a:>14.1f}{b:>14.1f}{'':>8}")
        lines.append(
            f"n={before.report.n} test points, {before.report.threat}; latency: median of "
            f"alternating passes, {self.device}, {self.threads} threads"
        )
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        content = asdict(self)
        for name, each in (("dense", self.dense), ("small", self.small)):
            content[name]["report"] = json.loads(each.report.to_json())
        return content


def before_after(run: Run) -> BeforeAfter:
    """Measure the dense network that a finished run began with, and the one that it left.

    Writes before_after.json and before_after.txt to the run's folder.

    Raises:
        ValueError: if the run has not removed channels.
    """
    if not (run.folder / "small.safetensors").is_file():
        raise ValueError(
            f"{run.folder} holds no small.safetensors; run a recipe with --structure channels."
        )
    dense, masked = run.fresh_model(), run.fresh_model()
    load_weights(dense, dense_weights(run.folder, run.config))
    load_weights(masked, run.folder / "model.safetensors")
    small = small_network(run, masked)
    dense.eval(), small.eval()
    times = {batch: _latency(run, dense, small, batch) for batch in _BATCHES}
    before, after = (
        Measured(
            sum(p.numel() for p in model.parameters()),
            total_multiply_adds(model, (run.example,)),
            sum(t.numel() * t.element_size() for t in model.state_dict().values()),
            {batch: times[batch][place] for batch in _BATCHES},
            _report(run, model),
        )
        for place, model in enumerate((dense, small))
    )
    found = BeforeAfter(before, after, str(run.device), torch.get_num_threads())
    write_text(run.folder / "before_after.json", json.dumps(found.plain(), indent=1))
    write_text(run.folder / "before_after.txt", f"{found}\n")
    return found


def _latency(run: Run, dense: nn.Module, small: nn.Module, batch: int) -> tuple[float, float]:
    """Median milliseconds of both, taken in turns."""
    x = torch.rand(batch, *run.data.shape, device=run.device)

    def passing(model: nn.Module) -> Callable[[], None]:
        def forward() -> None:
            with torch.inference_mode():
                model(x)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)

        return forward

    first, second = alternating(passing(dense), passing(small), seconds=2.0)
    return 1000 * first, 1000 * second


def _report(run: Run, model: nn.Module) -> Report:
    of = run.config.evaluation
    attack = pgd(run.threat, steps=of.steps, restarts=of.restarts, keep="best")
    points = loader(run.data.test, batch_size=of.batch_size, seed=0, epoch=0, shuffle=False)
    torch.manual_seed(seed_of(run.config.seed, "evaluation"))
    return evaluate(model, points, attacks=[attack])
