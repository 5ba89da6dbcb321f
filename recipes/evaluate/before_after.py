"""The table of a network before and after channels were removed: size, cost, latency, accuracy.

``before_after`` measures the dense network that a run started from and the small network that it
produced, in turns on the same machine. The command ``channels`` prints the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from robust_plugin.budget.costs import total_multiply_adds
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.evaluate.measure import measure, strongest_pgd
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.training.run import Run, dense_weights
from robust_plugin.recipes.training.weights_or_channels import small_network
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.tables import table
from robust_plugin.runtime.timing import alternating

# Batch sizes at which the latency of a forward pass is measured.
_BATCHES = (1, 64)


@dataclass(frozen=True)
class Measured:
    """Size, cost, latency and accuracy of one network.

    Attributes:
        parameters: number of parameters.
        multiply_adds: number of multiply-adds of a forward pass on one example.
        bytes: size of all parameters and buffers in bytes.
        milliseconds: median time of a forward pass on this machine, by batch size.
        report: clean accuracy, and robust accuracy under PGD, on the test points.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    milliseconds: dict[int, float]
    report: Report


@dataclass(frozen=True)
class BeforeAfter:
    """Measurements of the dense network and of the network without the removed channels.

    Attributes:
        dense: the network before pruning.
        small: the network after its channels were removed.
        device: device on which the latency was measured.
        threads: number of CPU threads that torch used.
    """

    dense: Measured
    small: Measured
    device: str
    threads: int

    def __str__(self) -> str:
        """Return the table; its last column is the small network's value over the dense one's."""
        before, after = self.dense, self.small
        costs: list[tuple[str, float, float, str]] = [
            ("parameters", before.parameters, after.parameters, ",.0f"),
            ("multiply-adds", before.multiply_adds, after.multiply_adds, ",.0f"),
            ("file, bytes", before.bytes, after.bytes, ",.0f"),
        ]
        for batch, each in before.milliseconds.items():
            costs.append((f"ms at batch {batch}", each, after.milliseconds[batch], ".3f"))
        rows = [["", "dense", "pruned", "ratio"]]
        rows += [[name, f"{a:{form}}", f"{b:{form}}", f"{b / a:.3f}"] for name, a, b, form in costs]
        for row in before.report.rows:
            a, b = (100 * each.report.accuracy(row) for each in (before, after))
            rows.append([f"{row}, %", f"{a:.1f}", f"{b:.1f}"])
        lines = table(rows, align="<>>>")
        lines.append(
            f"n={before.report.n} test points, {before.report.threat}; latency: median of "
            f"alternating passes, {self.device}, {self.threads} threads"
        )
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """Return all measurements as dicts, lists, strings and numbers, for JSON."""
        content = asdict(self)
        for name, each in (("dense", self.dense), ("small", self.small)):
            content[name]["report"] = json.loads(each.report.to_json())
        return content


def before_after(run: Run) -> BeforeAfter:
    """Measure the dense network that a finished run started from, and the small one it produced.

    Writes before_after.json and before_after.txt to the run's folder.

    Args:
        run: finished run with structure channels.

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
    """Return the median milliseconds per forward pass of both networks, timed alternately.

    Args:
        run: run whose input shape and device are used.
        dense: network before pruning.
        small: network after its channels were removed.
        batch: number of inputs per forward pass.
    """
    x = torch.rand(batch, *run.data.shape, device=run.device)

    def forward_of(model: nn.Module) -> Callable[[], None]:
        def forward() -> None:
            with torch.inference_mode():
                model(x)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)

        return forward

    first, second = alternating(forward_of(dense), forward_of(small), seconds=2.0)
    return 1000 * first, 1000 * second


def _report(run: Run, model: nn.Module) -> Report:
    """Measure clean accuracy, and robust accuracy under PGD, on the test points of a run."""
    settings = run.config.evaluation
    return measure(
        model,
        run.data.test,
        attacks=[strongest_pgd(run.threat, steps=settings.steps, restarts=settings.restarts)],
        seed=run.config.seed,
        batch_size=settings.batch_size,
    )
