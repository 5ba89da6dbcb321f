"""Gather the facts that the page of a run shows, from the run's folder and its networks.

The dense network is measured once; everything else is read from the files of the folder. So the
page of a finished run, or of a run of an older version, can be made again at any time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robust_plugin.evaluation.report import Report
from robust_plugin.pruning.sparsity_table import sparsity
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.evaluate.before_after import BeforeAfter, compared
from robust_plugin.recipes.evaluate.under_attack import read_examples
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.pages.run_facts import (
    Epoch,
    Example,
    Layer,
    Mask,
    RunFacts,
    UnderAttack,
)
from robust_plugin.recipes.pages.security_curve import CurveUnderPGD
from robust_plugin.recipes.training.objective import validation_certifier
from robust_plugin.recipes.training.run import Run, dense_weights


def run_facts(run: Run, *, method: str, command: str) -> RunFacts:
    """Return everything that the page of a finished run shows.

    Args:
        run: finished run; its folder holds report.json and model.safetensors.
        method: name of the recipe.
        command: command line of the run.

    Raises:
        ValueError: if a file of the run is missing or damaged.
    """
    config, folder = run.config, run.folder
    content = json.loads((folder / "report.json").read_text())
    report = Report.from_json(json.dumps(content["report"]))
    networks = _networks(run)
    smoothing = folder / "smoothing.txt"
    names = getattr(run.data, "class_names", ()) or map(str, range(run.data.classes))
    return RunFacts(
        method=method,
        model=config.model,
        data=run.data.name,
        objective=config.objective.name,
        threat=str(run.threat),
        structure=config.structure,
        density=config.density,
        budget=config.budget,
        validation=_validation(run),
        report=report,
        dense=networks.dense if networks else None,
        pruned=networks.pruned if networks else None,
        comparisons=networks.comparisons if networks else (),
        curves=_curves(run, method, networks, content),
        epochs=_epochs(folder / "log.jsonl"),
        layers=tuple(Layer(name, *counts) for name, counts in content["kept"].items()),
        masks=_masks(run),
        examples=examples_of(folder / "examples.safetensors"),
        attacked=attacked_of(content.get("attacked"), report),
        class_names=tuple(names),
        findings=(*content.get("findings", ()), *report.findings),
        smoothing=smoothing.read_text() if config.evaluation.smooth and smoothing.is_file() else "",
        device=f"{networks.device}, {_threads(networks.threads)}" if networks else "",
        command=command,
        settings=as_plain(config),
        versions=content.get("versions", {}),
    )


def _networks(run: Run) -> BeforeAfter | None:
    """Return the measurements of the dense and the pruned network.

    None if the weights of the dense network are not there any more.
    """
    if not dense_weights(run.folder, run.config).is_file():
        return None
    return compared(run, stored=True)


def _curves(
    run: Run, method: str, networks: BeforeAfter | None, content: dict[str, Any]
) -> dict[str, CurveUnderPGD]:
    """Return the security curves of the dense and the pruned network, by their names in plots.

    Args:
        run: finished run; there are no curves if its settings turn them off, or if report.json has
            none.
        method: name of the recipe, which is the name of the pruned network.
        networks: measurements of the dense network; None without one.
        content: what report.json holds.
    """
    pruned = CurveUnderPGD.from_plain(content.get("security_curve"))
    if pruned is None or not run.config.evaluation.curve:
        return {}
    dense = {} if networks is None or networks.curve is None else {"dense": networks.curve}
    return {**dense, method: pruned}


def _threads(threads: int) -> str:
    """Return a number of CPU threads in words."""
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def _validation(run: Run) -> str:
    """Return how robust accuracy on the validation points is measured, in a word or two."""
    certifier: Any = validation_certifier(run.config.objective, run.threat)
    if certifier is None:
        return f"PGD-{run.config.objective.steps}"
    return f"certified by {getattr(certifier, 'name', type(certifier).__name__)}"


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """Return the epochs of a log.jsonl; none if there is no such file.

    A log of an older version has no densities of the layers.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    return tuple(
        Epoch(
            record["stage"],
            record["loss"],
            record["clean"],
            record["robust"],
            record["density"],
            record.get("densities", {}),
        )
        for record in map(json.loads, lines)
    )


def _masks(run: Run) -> tuple[Mask, ...]:
    """Return which weights are left in the first, a middle and the last prunable layer."""
    model = run.fresh_model().cpu()
    load_weights(model, run.folder / "model.safetensors")
    layers = sparsity(model).layers
    places = sorted({0, len(layers) // 2, len(layers) - 1})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return tuple(
        Mask(layers[place].name, parameters[layers[place].name].detach() != 0)
        for place in places
        if layers[place].name in parameters
    )


def examples_of(path: Path) -> tuple[Example, ...]:
    """Return the example points of a file that ``save_examples`` wrote; none without a file.

    There are none either if the inputs are not images of one or three channels.
    """
    found = read_examples(path)
    if not found or found["clean"].dim() != 4 or found["clean"].shape[1] not in (1, 3):
        return ()
    each = {name: found[f"{name}_logits"].softmax(1).max(1) for name in ("clean", "adversarial")}
    confidences, predictions = (
        list(zip(*(getattr(each[name], part).tolist() for name in each), strict=True))
        for part in ("values", "indices")
    )
    rows = zip(
        found["points"].tolist(),
        found["labels"].tolist(),
        found["clean"],
        found["adversarial"],
        predictions,
        confidences,
        strict=True,
    )
    return tuple(Example(*row) for row in rows)


def attacked_of(content: dict[str, Any] | None, report: Report) -> UnderAttack | None:
    """Return the predictions that report.json holds; None for a report of an older version."""
    if content is None:
        return None
    clean, adversarial = tuple(content["clean"]), tuple(content["adversarial"])
    return UnderAttack(content["attack"], report.labels[: len(clean)], clean, adversarial)
