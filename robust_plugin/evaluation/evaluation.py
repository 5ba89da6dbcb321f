"""Evaluation: one pass over a loader, clean, under every attack and certified, to a Report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, NotFiniteGradient, SuspectNetwork, attacked
from robust_plugin.attacks.logits import check_logits, naming_inputs
from robust_plugin.certificates.contract import Certifier
from robust_plugin.evaluation.report import Report
from robust_plugin.evaluation.rows import AttackRow, ProofRow, Row, rows_of
from robust_plugin.evaluation.sanity import findings, is_random, refuse_random
from robust_plugin.runtime.files import write_bytes
from robust_plugin.runtime.journal import Fingerprint
from robust_plugin.threat.model import ThreatModel
from robust_plugin.version import __version__


@dataclass
class _Seen:
    """The points that were evaluated.

    Attributes:
        labels: of each point.
        clean: whether it is right clean.
        findings: what looks wrong with the model.
        inputs: the fingerprint of all inputs.
        held: batches (x, y), where they are kept.
    """

    labels: list[int] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    inputs: Fingerprint = field(default_factory=Fingerprint)
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def together(self) -> tuple[Tensor, Tensor]:
        """Return all points that are held, as one batch."""
        x, y = (torch.cat(each) for each in zip(*self.held, strict=True))
        return x, y


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Sequence[Attack] | Mapping[str, Attack] = (),
    certifier: Certifier | None = None,
    threat: ThreatModel | None = None,
    limits: Mapping[str, int] | None = None,
    adversarial: str | Path | None = None,
) -> Report:
    """Evaluate a model clean, under attacks and by proofs, on the same points.

    In evaluation mode; attacks and the certifier see the points that are right clean. Flags,
    gradients and the global generator of the model and the process are left as they were; the same
    call gives the same report.

    Args:
        model: pruned or not, with or without a pruner attached.
        loader: batches (x [B, ...], y [B]); moved to the model's device.
        attacks: any callables ``attack(model, x, y)``, or a dict of them by the row's name.
        certifier: ``certifier(model, x, y)``, a bool a point: whether it is proved; or one that has
            ``decide``, as ``Verifier``, and tells who proved it.
        threat: checked around attacks that bring no ``threat`` of their own.
        limits: by attack name, or ``"certified"``, how many of the first points it gets; default
            all.
        adversarial: a file to write the adversarial images to: tensors ``inputs``, ``labels`` and
            one a row, for ``torch.load(..., weights_only=True)``.

    Raises:
        TypeError, ValueError: for inputs, labels, logits or attack results that are not as they
            should be, a forward pass that is random in evaluation mode (unless all attacks are made
            for that), an empty loader, or a point that is certified and fooled in the same ball.

    >>> from robust_plugin import IBP, pgd
    >>> model = nn.Sequential(nn.Linear(1, 2))  # class 1 where x > 0.5
    >>> _ = model[0].load_state_dict(
    ...     {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([0.5, -0.5])}
    ... )
    >>> x, y = torch.tensor([[0.1], [0.4], [0.55], [0.9]]), torch.tensor([0, 0, 1, 1])
    >>> threat = ThreatModel("Linf", eps=0.1)
    >>> report = evaluate(model.eval(), [(x, y)], attacks=[pgd(threat)], certifier=IBP(threat))
    >>> report.accuracy(), report.accuracy("PGD-10"), report.accuracy("certified")
    (1.0, 0.75, 0.5)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module.")
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader is a {type(loader).__name__}; give batches (x, y).")
    if adversarial is not None and not isinstance(adversarial, str | Path):
        raise TypeError(f"adversarial is {adversarial!r}; give the name of a file.")
    if adversarial is not None and Path(adversarial).is_dir():
        raise ValueError(f"adversarial is {adversarial}, a folder; give the name of a file.")
    rows = rows_of(attacks, certifier, threat, limits or {}, keep=adversarial is not None)
    hold = adversarial is not None or any(row.at_once for row in rows.values())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before = str(Fingerprint(*model.parameters()))
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        attacked(model),
        _findings_of_attacks() as lost,
    ):
        seen = _pass(model, loader, rows, device, hold=hold)
    if lost and not any("NaN" in finding for finding in seen.findings):
        seen.findings.append(lost[0])
    if str(Fingerprint(*model.parameters())) != before:
        raise ValueError("an attack has changed the model's parameters; its figures are of no use.")
    report = _report(seen, rows)
    if adversarial is not None:
        _write(Path(adversarial), seen, rows)
    return report


@contextmanager
def _findings_of_attacks() -> Iterator[list[str]]:
    """Collect what attacks warn of gradients; hide what the report finds by itself."""
    found: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, NotFiniteGradient):
                found.append(str(message))
            else:
                show(message, category, *place, **more)

        warnings.showwarning = shown
        warnings.simplefilter("ignore", SuspectNetwork)
        warnings.simplefilter("always", NotFiniteGradient)
        yield found


def _pass(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    rows: Mapping[str, Row],
    device: torch.device,
    *,
    hold: bool,
) -> _Seen:
    """Let every row take the points of a loader, batch by batch, or all at once at the end."""
    seen = _Seen()
    for batch in loader:
        x, y = _points(batch)
        for point in x:  # in one way whatever the batches
            seen.inputs.add(point)
        x, y = x.to(device), y.to(device)
        with torch.no_grad(), naming_inputs(model, x):
            logits = check_logits(model(x), y)
            if not seen.labels:
                _check_first(model, x, y, logits, rows, seen)
        right = logits.argmax(1) == y
        for row in rows.values():
            if not row.at_once:
                row.take(model, x, y, right)
        seen.clean += right.tolist()
        seen.labels += y.tolist()
        seen.held += [(x, y)] if hold else []
    if not seen.labels:
        raise ValueError("the loader is empty; nothing to evaluate.")
    whole = [row for row in rows.values() if row.at_once]
    if whole:
        x, y = seen.together()
        for row in whole:
            row.take(model, x, y, torch.tensor(seen.clean, device=device))
    return seen


def _check_first(
    model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, rows: Mapping[str, Row], seen: _Seen
) -> None:
    """What the first batch shows, before anything takes hours."""
    attacks = [row for row in rows.values() if isinstance(row, AttackRow)]
    for row in attacks:
        if row.check_classes is not None:
            row.check_classes(logits.shape[1])
        if row.check_points is not None:
            row.check_points(x)
    for_random = [row.for_random for row in attacks]
    if for_random and all(for_random) and len(attacks) == len(rows):
        if is_random(model, x, logits):
            # No finding more: noise is no gradient's.
            seen.findings.append("the network is random; each figure is of one draw")
            return
    else:
        refuse_random(model, x, logits)
    seen.findings += findings(model, x, y)


def _report(seen: _Seen, rows: Mapping[str, Row]) -> Report:
    attacks = {name: row for name, row in rows.items() if isinstance(row, AttackRow)}
    by_search = sorted(attacks.items(), key=lambda pair: not pair[1].searches)
    measured = by_search if any(row.searches for row in attacks.values()) else []
    proofs = rows.get("certified")
    report = Report(
        tuple(seen.labels),
        {"clean": tuple(seen.clean), **{name: tuple(row.flags) for name, row in attacks.items()}},
        {name: row.threat for name, row in attacks.items()},
        tuple(seen.findings),
        str(seen.inputs),
        None if proofs is None else tuple(proofs.flags),
        None if proofs is None else proofs.threat,
        {name: tuple(row.distances) for name, row in measured},
        proofs.name if isinstance(proofs, ProofRow) else None,
        tuple(proofs.words) if isinstance(proofs, ProofRow) else None,
        {name: row.made_of for name, row in rows.items()},
        _versions(rows),
        torch.initial_seed(),
    )
    report.refuse_contradiction()
    return report


def _versions(rows: Mapping[str, Row]) -> dict[str, str]:
    ours = {"robust_plugin": __version__, "torch": torch.__version__}
    return {name: each for row in rows.values() for name, each in row.versions.items()} | ours


def _write(path: Path, seen: _Seen, rows: Mapping[str, Row]) -> None:
    x, y = seen.together()
    images = {
        name: torch.cat(row.images) for name, row in rows.items() if isinstance(row, AttackRow)
    }
    buffer = io.BytesIO()
    torch.save({"inputs": x.cpu(), "labels": y.cpu(), **images}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _points(batch: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise TypeError(f"the loader gives a {type(batch).__name__}; legal: batches (x, y).")
    x, y = batch
    if not (isinstance(x, Tensor) and x.is_floating_point() and len(x)):
        shown = (
            f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        )
        raise ValueError(f"inputs are {shown}; legal: floats, at least one point.")
    if not bool(x.isfinite().all()):
        raise ValueError("the inputs hold NaN or infinity.")
    if not isinstance(y, Tensor):
        raise TypeError(f"labels are a {type(y).__name__}; legal: a tensor, one integer a point.")
    return x, y if y.is_floating_point() else y.long()
