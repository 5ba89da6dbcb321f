"""The table of a network before and after pruning: size, cost, latency, accuracy.

``compared`` measures the dense network that a run started from and the network that it produced, in
turns on the same machine. The page of a run shows the result, and the command ``channels`` prints
it with ``before_after``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from robust_plugin.budget.costs import total_multiply_adds
from robust_plugin.evaluation.comparison import Comparison
from robust_plugin.evaluation.report import Report
from robust_plugin.export.compressed import save_compressed
from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.evaluate.certifiers import certifier_of
from robust_plugin.recipes.evaluate.measure import measure, strongest_pgd
from robust_plugin.recipes.evaluate.security_curve import measured_curve, points_of_curve
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.pages.accuracy_rows import rows_of
from robust_plugin.recipes.pages.run_facts import Network
from robust_plugin.recipes.pages.security_curve import CurveUnderPGD
from robust_plugin.recipes.training.run import Run, dense_weights
from robust_plugin.recipes.training.weights_or_channels import small_network
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.tables import table
from robust_plugin.runtime.timing import alternating

# Batch sizes at which the latency of a forward pass is measured, and for how many seconds each.
_BATCHES, _SECONDS = (1, 64), 0.3
# Number of test points, from the first one, on which both networks are compared.
_POINTS = 1000
# Certifiers that bound all points in one pass, so that proofs of the dense network take no time.
_QUICK = ("ibp", "crown-ibp")

_LABELS = {
    "weights": ("parameters not zero", "their multiply-adds", "compressed file, bytes"),
    "channels": ("parameters", "multiply-adds", "file, bytes"),
}


@dataclass(frozen=True)
class BeforeAfter:
    """Measurements of the dense network and of the pruned one.

    Attributes:
        dense: the network before pruning.
        pruned: the network after pruning; with structure channels, the small network from which the
            channels are removed.
        structure: what was pruned, ``"weights"`` or ``"channels"``.
        device: device on which the latency was measured.
        threads: number of CPU threads that torch used.
        epochs: number of epochs that the pruned network was trained longer than the dense one.
        curve: security curve of the dense network; None if report.json has none of the pruned one.
    """

    dense: Network
    pruned: Network
    structure: str
    device: str
    threads: int
    epochs: int = 0
    curve: CurveUnderPGD | None = None

    def __str__(self) -> str:
        """Return the table; its last column is the pruned network's value over the dense one's."""
        before, after = self.dense, self.pruned
        names = _LABELS[self.structure]
        costs: list[tuple[str, float, float, str]] = [
            (names[0], before.parameters, after.parameters, ",.0f"),
            (names[1], before.multiply_adds, after.multiply_adds, ",.0f"),
            (names[2], before.bytes, after.bytes, ",.0f"),
        ]
        for batch, each in before.milliseconds.items():
            costs.append((f"ms at batch {batch}", each, after.milliseconds[batch], ".3f"))
        rows = [["", "dense", "pruned", "ratio"]]
        rows += [[name, f"{a:{form}}", f"{b:{form}}", f"{b / a:.3f}"] for name, a, b, form in costs]
        for row in rows_of(before.report):
            a, b = (100 * each.report.accuracy(row) for each in (before, after))
            rows.append([f"{row}, %", f"{a:.1f}", f"{b:.1f}"])
        lines = table(rows, align="<>>>")
        lines.append(
            f"n={before.report.n} test points, {before.report.threat}; latency: median of "
            f"alternating passes, {self.device}, {self.threads} threads"
        )
        return "\n".join([*lines, *map(str, self.comparisons)])

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The pruned network against the dense one, by each accuracy."""
        before, after = self.dense.report, self.pruned.report
        return tuple(
            after.compare(before, row, name="pruned", other_name="dense", extra_epochs=self.epochs)
            for row in rows_of(before)
        )

    def plain(self) -> dict[str, Any]:
        """Return all measurements as dicts, lists, strings and numbers, for JSON."""
        networks = {
            name: {**vars(each), "report": json.loads(each.report.to_json())}
            for name, each in (("dense", self.dense), ("pruned", self.pruned))
        }
        return {**vars(self), **networks, "curve": self.curve and self.curve.plain()}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> BeforeAfter:
        """Return the measurements that ``plain`` returned, also after a way through JSON."""

        def network(each: dict[str, Any]) -> Network:
            times = {int(batch): time for batch, time in each["milliseconds"].items()}
            report = Report.from_json(json.dumps(each["report"]))
            return Network(**{**each, "milliseconds": times, "report": report})

        networks = {name: network(content[name]) for name in ("dense", "pruned")}
        curve = CurveUnderPGD.from_plain(content.get("curve"))
        return cls(**{**content, **networks, "curve": curve})


def before_after(run: Run) -> BeforeAfter:
    """Measure the dense network of a finished run on channels, and the small one it produced.

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
    return compared(run)


def compared(run: Run, *, stored: bool = False) -> BeforeAfter:
    """Measure the dense network that a finished run started from, and the pruned one.

    The accuracies are those of the first 1,000 test points. The pruned network's are taken from
    report.json if it is there. Writes before_after.json and before_after.txt to the run's folder.

    Args:
        run: finished run.
        stored: return the measurements of before_after.json, if they are of this run with these
            settings; otherwise everything is measured again.

    Raises:
        ValueError: if the weights of the dense network are not there.
    """
    content = _content(run.folder / "report.json")
    identity = content.get("identity")
    path = run.folder / "before_after.json"
    found = _content(path) if stored else {}
    points = points_of_curve(run) if content.get("security_curve") else 0
    same = identity is not None and found.get("identity") == identity
    if same and points in (0, _points(found.get("curve"))):
        return BeforeAfter.from_plain({name: found[name] for name in _FIELDS if name in found})
    dense, pruned = run.fresh_model(), run.fresh_model()
    load_weights(dense, dense_weights(run.folder, run.config))
    load_weights(pruned, run.folder / "model.safetensors")
    if run.config.structure == "channels":
        pruned = small_network(run, pruned)
    dense.eval(), pruned.eval()
    times = {batch: _latency(run, dense, pruned, batch) for batch in _BATCHES}
    before = _report(run, dense, "dense network")
    after = (
        _report(run, pruned, "pruned network")
        if "report" not in content
        else _first(content["report"], before)
    )
    networks = [
        Network(*_size(run, model), {batch: times[batch][place] for batch in _BATCHES}, report)
        for place, (model, report) in enumerate(((dense, before), (pruned, after)))
    ]
    threads = torch.get_num_threads()
    epochs = _epochs_after_dense(run.folder / "log.jsonl")
    structure, device = run.config.structure, str(run.device)
    curve = measured_curve(run, dense, name="dense network: ") if points else None
    measured = BeforeAfter(networks[0], networks[1], structure, device, threads, epochs, curve)
    write_text(path, json.dumps({**measured.plain(), "identity": identity}, indent=1))
    write_text(run.folder / "before_after.txt", f"{measured}\n")
    return measured


def _epochs_after_dense(log: Path) -> int:
    """Return the number of epochs in a run's log that are not of the dense network."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return sum(json.loads(line)["stage"] != "pretrain" for line in lines)


_FIELDS = tuple(BeforeAfter.__dataclass_fields__)


def _points(curve: dict[str, Any] | None) -> int:
    """Return the number of points of a stored security curve; 0 without one."""
    return len(curve["distances"]) if curve else 0


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _size(run: Run, model: nn.Module) -> tuple[int, int, int]:
    """Return the parameters, the multiply-adds and the bytes of a network without its zeros.

    With structure channels, a network holds no zeros to leave out.

    Args:
        run: run whose input shape and structure are used.
        model: network before or after pruning.
    """
    parameters = sum(p.numel() for p in model.parameters())
    operations = total_multiply_adds(model, (run.example,))
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if run.config.structure == "channels":
        return parameters, operations, size
    for layer in sparsity(model, run.example).layers:
        parameters -= layer.size - layer.kept
        operations -= layer.multiply_adds * (layer.size - layer.kept)
    with TemporaryDirectory() as folder:
        compressed = save_compressed(Path(folder) / "compressed.safetensors", model)
    return parameters, operations, min(size, compressed.size)


def _latency(run: Run, dense: nn.Module, pruned: nn.Module, batch: int) -> tuple[float, float]:
    """Return the median milliseconds per forward pass of both networks, timed alternately.

    Args:
        run: run whose input shape and device are used.
        dense: network before pruning.
        pruned: network after pruning.
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

    first, second = alternating(forward_of(dense), forward_of(pruned), seconds=_SECONDS)
    return 1000 * first, 1000 * second


def _report(run: Run, model: nn.Module, name: str) -> Report:
    """Measure the accuracy, clean and under PGD, on the first test points of a run.

    Points are also proved, if the settings ask for a certifier that takes no time.

    Args:
        run: run whose test points, threat model and settings are used.
        model: the network.
        name: what the progress calls the network.
    """
    settings, test = run.config.evaluation, run.data.test
    n = min(_POINTS, len(test))  # type: ignore[arg-type]
    proofs = min(n, settings.verify) if settings.certify in _QUICK else 0
    return measure(
        model,
        Subset(test, range(n)),
        attacks=[strongest_pgd(run.threat, steps=settings.steps, restarts=settings.restarts)],
        seed=run.config.seed,
        batch_size=settings.batch_size,
        certifier=certifier_of(settings.certify, run.threat) if proofs else None,
        limits={"certified": proofs} if proofs else None,
        progress=lambda now: run.progress(replace(now, task=f"{name}: {now.task}")),
    )


def _first(content: dict[str, Any], other: Report) -> Report:
    """Return a report of a run, cut to the points and the rows of another report.

    Args:
        content: the report as in report.json, of the same test points or more.
        other: report of the first of these points.
    """
    report, proofs = Report.from_json(json.dumps(content)).first(other.n), other.certified
    return replace(
        report,
        inputs=other.inputs,
        flags={row: report.flags[row] for row in other.rows},
        threats=other.threats,
        certified=None if proofs is None else (report.certified or ())[: len(proofs)],
        certified_threat=other.certified_threat,
        certifier=other.certifier,
        verdicts=None,
        attacks=other.attacks,
    )
