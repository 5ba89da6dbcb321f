"""Run the attacks and the certifier of an evaluation on the points of a loader, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import check_logits, naming_inputs
from robust_plugin.evaluation.rows import AttackRow, Row
from robust_plugin.evaluation.running_statistics import misfit
from robust_plugin.evaluation.sanity import findings, is_random, refuse_random
from robust_plugin.runtime.journal import Fingerprint
from robust_plugin.runtime.progress import ProgressOption, reporting


@dataclass
class Seen:
    """The points that were evaluated, and the results on the clean inputs.

    Attributes:
        labels: true class of each point.
        clean: whether each clean point is classified correctly.
        findings: sentences about what looks wrong with the model.
        inputs: fingerprint of all inputs, a SHA-256.
        batches: all batches (x, y) on the model's device, if they are kept; else empty.
    """

    labels: list[int] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    inputs: Fingerprint = field(default_factory=Fingerprint)
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def together(self) -> tuple[Tensor, Tensor]:
        """Return all points as one batch (x, y); possible only if the batches were kept."""
        x, y = (torch.cat(each) for each in zip(*self.batches, strict=True))
        return x, y


def run_rows(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    rows: Mapping[str, Row],
    device: torch.device,
    *,
    keep: bool,
    progress: ProgressOption = False,
) -> Seen:
    """Run attacks and certifier on the points of a loader, and return the points and clean results.

    Each of them runs batch by batch, or on all points at the end if its ``at_once`` is True. Its
    results are added to its own object in ``rows``.

    Args:
        model: the network, in evaluation mode.
        loader: batches (x, y).
        rows: the attacks and the certifier with their results so far, by name.
        device: device of the model.
        keep: whether the batches are kept in the result; needed if ``at_once`` is True anywhere.
        progress: as in ``evaluate``; what runs on all points at the end reports by itself.

    Raises:
        TypeError, ValueError: for batches, labels or logits that are not valid, an empty loader,
            and everything that ``_check_first`` or an attack or the certifier raises an error for.
    """
    seen = Seen()
    batches = _length(loader)
    names = ["clean", *(name for name, row in rows.items() if not row.at_once)]
    task = f"evaluate: {', '.join(names)}"
    with reporting(progress, task, total=batches or 1, unit="batches") as show:
        number = 0
        for number, batch in enumerate(loader, 1):
            x, y = _points(batch)
            for point in x:  # one by one, so that the fingerprint does not depend on the batch size
                seen.inputs.add(point)
            x, y = x.to(device), y.to(device)
            with torch.no_grad(), naming_inputs(model, x):
                logits = check_logits(model(x), y)
                if not seen.labels:
                    _check_first(model, x, y, logits, rows, seen)
            right = logits.argmax(1) == y
            for row in rows.values():
                if not row.at_once:
                    row.run(model, x, y, right)
            seen.clean += right.tolist()
            seen.labels += y.tolist()
            seen.batches += [(x, y)] if keep else []
            show(number, max(number, batches) if batches else number + 1)
        if not batches and number:
            show(number, number)
    if not seen.labels:
        raise ValueError(
            "the loader is empty; nothing to evaluate. A generator can be used only once: give a "
            "DataLoader, or a list of batches."
        )
    at_once = [row for row in rows.values() if row.at_once]
    if at_once:
        x, y = seen.together()
        for row in at_once:
            row.run(model, x, y, torch.tensor(seen.clean, device=device))
    return seen


def _length(loader: Iterable[Any]) -> int | None:
    """Return the number of batches of a loader; None if the loader does not know it."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # also from a DataLoader of a data set without a length
        return None


def _check_first(
    model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, rows: Mapping[str, Row], seen: Seen
) -> None:
    """Check the first batch, so that errors and defects show before attacks run for hours.

    Args:
        model: the network, in evaluation mode.
        x: inputs of the first batch, shape [B, ...].
        y: labels, shape [B].
        logits: the network's logits for x.
        rows: the attacks and the certifier, by name.
        seen: its ``findings`` get the defects that were found.

    Raises:
        ValueError: for a number of classes or inputs that an attack cannot handle, and for a model
            that is random in evaluation mode, unless all attacks are made for that.
    """
    attacks = [row for row in rows.values() if isinstance(row, AttackRow)]
    for row in attacks:
        if row.check_classes is not None:
            row.check_classes(logits.shape[1])
        if row.check_points is not None:
            row.check_points(x)
    for_random = [row.for_random for row in attacks]
    if for_random and all(for_random) and len(attacks) == len(rows):
        if is_random(model, x, logits):
            # The other checks are skipped, because noise would make their gradients meaningless.
            seen.findings.append("the network is random; each figure is of one draw")
            return
    else:
        refuse_random(model, x, logits)
    seen.findings += [*misfit(model, x, y), *findings(model, x, y)]


def _points(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of a batch.

    Args:
        batch: what the loader gives, legally a pair (x, y) of tensors.

    Raises:
        TypeError: if the batch is not a pair, or the labels are not a tensor.
        ValueError: if the inputs are not finite floats, or there are none.
    """
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        if isinstance(batch, Mapping):
            keys = [f"batch[{key!r}]" for key in list(batch)[:2]]
            fix = f"Give [({', '.join(keys)}) for batch in loader]"
        elif isinstance(batch, Tensor):
            fix = "Give [(x, y)] for one batch, and a loader that yields labels too"
        else:
            fix = "Give [(x, y) for x, y, *_ in loader]"
        raise TypeError(f"the loader gives a {type(batch).__name__}; legal: batches (x, y). {fix}.")
    x, y = batch
    if not (isinstance(x, Tensor) and x.is_floating_point() and len(x)):
        shown = (
            f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        )
        raise ValueError(
            f"inputs are {shown}; legal: a tensor of floats, at least one point, such as x.float() "
            "/ 255 of images of bytes."
        )
    if not bool(x.isfinite().all()):
        raise ValueError("the inputs hold NaN or infinity.")
    if not isinstance(y, Tensor):
        raise TypeError(f"labels are a {type(y).__name__}; legal: a tensor, one integer per point.")
    return x, y if y.is_floating_point() else y.long()
