"""Evaluation: one pass over a loader, clean, under every attack and certified, to a Report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.checkpoint import write_bytes
from robust_plugin.fingerprint import Fingerprint
from robust_plugin.guard import Attack, attacked, check_logits
from robust_plugin.report import Report
from robust_plugin.rows import AttackRow, Certifier, ProofRow, Row
from robust_plugin.sanity import findings, refuse_random
from robust_plugin.threat import ThreatModel

# Names that mean something else in a report, or in the file of adversarial images.
_RESERVED = ("clean", "worst case", "certified", "inputs", "labels")


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Sequence[Attack] = (),
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
        attacks: any callables ``attack(model, x, y)``.
        certifier: ``certifier(model, x, y)``, a bool a point: whether it is proved.
        threat: checked around attacks that bring no ``threat`` of their own.
        limits: by attack name, or ``"certified"``, how many of the first points it gets; default
            all.
        adversarial: a file to write the adversarial images to: tensors ``inputs``, ``labels`` and
            one a row, for ``torch.load(..., weights_only=True)``.

    Raises:
        TypeError, ValueError: for inputs, labels, logits or attack results that are not as they
            should be, a forward pass that is random in evaluation mode, an empty loader, or a point
            that is certified and fooled in the same threat model.

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
    if adversarial is not None and Path(adversarial).is_dir():
        raise ValueError(f"adversarial is {adversarial}, a folder; give the name of a file.")
    rows = _rows(attacks, certifier, threat, dict(limits or {}), keep=adversarial is not None)
    held: list[tuple[Tensor, Tensor]] = []
    labels: list[int] = []
    clean: list[bool] = []
    found: list[str] = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    seen, before = Fingerprint(), str(Fingerprint(*model.parameters()))
    keep_points = adversarial is not None or any(row.at_once for row in rows.values())
    with torch.random.fork_rng(devices=devices), attacked(model):
        for batch in loader:
            x, y = _points(batch)
            for point in x:  # in one way whatever the batches
                seen.add(point)
            x, y = x.to(device), y.to(device)
            with torch.no_grad():
                logits = check_logits(model(x), y)
                if not labels:
                    refuse_random(model, x, logits)
                    found += findings(model, x, y)
            right = logits.argmax(1) == y
            for row in rows.values():
                if not row.at_once:
                    row.take(model, x, y, right)
            clean += right.tolist()
            labels += y.tolist()
            held += [(x, y)] if keep_points else []
        if not labels:
            raise ValueError("the loader is empty; nothing to evaluate.")
        if held:
            xs, ys = (torch.cat(each) for each in zip(*held, strict=True))
            for row in rows.values():
                if row.at_once:
                    row.take(model, xs, ys, torch.tensor(clean, device=device))
    if str(Fingerprint(*model.parameters())) != before:
        raise ValueError("an attack has changed the model's parameters; its figures are of no use.")
    report = _report(labels, clean, rows, found, str(seen))
    if adversarial is not None:
        _write(Path(adversarial), xs, ys, rows)
    return report


def _report(
    labels: Sequence[int],
    clean: Sequence[bool],
    rows: Mapping[str, Row],
    found: Sequence[str],
    inputs: str,
) -> Report:
    attacks = {name: row for name, row in rows.items() if isinstance(row, AttackRow)}
    by_search = sorted(attacks.items(), key=lambda pair: not pair[1].searches)
    measured = by_search if any(row.searches for row in attacks.values()) else []
    proofs = rows.get("certified")
    report = Report(
        tuple(labels),
        {"clean": tuple(clean), **{name: tuple(row.flags) for name, row in attacks.items()}},
        {name: row.threat for name, row in attacks.items()},
        tuple(found),
        inputs,
        None if proofs is None else tuple(proofs.flags),
        None if proofs is None else proofs.threat,
        {name: tuple(row.distances) for name, row in measured},
        None if not isinstance(proofs, ProofRow) else proofs.name,
    )
    report.refuse_contradiction()
    return report


def _write(path: Path, x: Tensor, y: Tensor, rows: Mapping[str, Row]) -> None:
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


def _rows(
    attacks: Sequence[Attack],
    certifier: Certifier | None,
    threat: ThreatModel | None,
    limits: dict[str, int],
    *,
    keep: bool,
) -> dict[str, Row]:
    """Return the attacks by name, and the certifier."""
    if callable(attacks):
        raise TypeError(f"attacks is {attacks!r}; give a list of attacks.")
    rows: dict[str, Row] = {}
    for attack in attacks:
        if not callable(attack):
            raise TypeError(f"{attack!r} is no attack; give callables, such as pgd(threat).")
        own, name = getattr(attack, "threat", threat), _name(attack)
        if own is None:
            raise ValueError(f"{name} says no threat model; give evaluate(..., threat=...).")
        if name in rows or name in _RESERVED:
            raise ValueError(f"two rows would be called {name!r}; give one attack another name.")
        rows[name] = AttackRow.of(attack, own, keep=keep)
    if certifier is not None:
        own = getattr(certifier, "threat", threat)
        if own is None:
            raise ValueError("the certifier says no threat model; give evaluate(..., threat=...).")
        rows["certified"] = ProofRow(certifier, own, _name(certifier))
    if unknown := set(limits) - set(rows):
        raise ValueError(f"limits name {sorted(unknown)}; the rows are {list(rows)}.")
    for name, room in limits.items():
        if not isinstance(room, int) or room < 1:
            raise ValueError(f"the limit of {name} is {room!r}; legal: at least 1 point, whole.")
        rows[name].room = room
    return rows


def _name(of: Any) -> str:
    return str(getattr(of, "name", getattr(of, "__name__", type(of).__name__)))
