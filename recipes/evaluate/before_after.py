"""Recipes on channels: what a mask covers, the network that is left, and a table of both.

A setting of the recipes and no command of its own: the phases, the objective and the budget are the
papers', and only what shares a score differs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin.attacks import pgd
from robust_plugin.checkpoint import write_text
from robust_plugin.evaluation import evaluate
from robust_plugin.export import alternating
from robust_plugin.flops import total_multiply_adds
from robust_plugin.presets import MagnitudePruner
from robust_plugin.pruner import Pruner
from robust_plugin.recipes.data import loader
from robust_plugin.recipes.identity import seed_of
from robust_plugin.recipes.models import example_of
from robust_plugin.recipes.processes import is_first, wait_for_all
from robust_plugin.recipes.run import Run
from robust_plugin.recipes.weights import dense_weights, load_weights
from robust_plugin.report import Report

# Inputs in a forward pass whose latency is measured.
_BATCHES = (1, 64)


def covered(run: Run, model: nn.Module) -> dict[str, Any]:
    """Return the pruner's ``groups`` and ``exclude`` for the run's structure."""
    config = run.config
    if config.structure == "weights":
        return {"groups": None, "exclude": config.exclude}
    from robust_plugin.adapters.torch_pruning import channel_groups

    return {"groups": channel_groups(model, run.example, ignored=config.exclude), "exclude": ()}


def refuse_early(run: Run) -> None:
    """Raise for a network or a budget that channels cannot be removed by, before it is trained.

    Raises:
        ValueError: as ``channel_groups`` and the pruner.
    """
    if run.config.structure == "weights":
        return
    model = run.fresh_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again, once, when the pruner is attached
        groups = covered(run, model)
    MagnitudePruner(
        model,
        run.config.density,
        budget=run.config.budget,
        round_to=run.config.round_to,
        **groups,
        example_inputs=run.example,
    )


def finished(run: Run, pruner: Pruner) -> nn.Module:
    """Finalize a pruner; of channels write the network without them to small.safetensors.

    Returns:
        nn.Module: the plain network in its old shape, zeros in place.
    """
    if run.config.structure == "channels":
        from robust_plugin.adapters.torch_pruning import remove_channels, save

        removed = remove_channels(pruner, run.example)
        if is_first():
            run.folder.mkdir(parents=True, exist_ok=True)
            save(run.folder / "small.safetensors", removed)
            sizes = {group.name: group.size for group in pruner.groups}
            kept = {name: [count, sizes[name]] for name, count in removed.counts.items()}
            write_text(run.folder / "channels.json", json.dumps(kept, indent=1))
        wait_for_all()
    pruner.finalize()
    return pruner.model


def small_network(run: Run, model: nn.Module) -> nn.Module:
    """Return the network without its channels, as the run's small.safetensors has it."""
    small = without_channels(run.folder / "small.safetensors", model, run.data.shape)
    return small.to(run.device)


def without_channels(path: Path, model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return the network that a small.safetensors holds, cut from one of the old architecture.

    Args:
        path: the file.
        model: of the architecture before pruning, with any weights.
        shape: of one input.

    Raises:
        ValueError: if there is no such file, or it is of another network.
    """
    from robust_plugin.adapters.torch_pruning import load

    return load(path, copy.deepcopy(model).cpu(), example_of(shape))


def kept_channels(run: Run) -> dict[str, list[int]]:
    """Return how many of how many channels each group keeps."""
    kept: dict[str, list[int]] = json.loads((run.folder / "channels.json").read_text())
    return kept


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
