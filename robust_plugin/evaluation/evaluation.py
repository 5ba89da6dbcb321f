"""``evaluate``: measure clean, robust and certified accuracy in one pass over a loader."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, NotFiniteGradient, SuspectNetwork, attacked
from robust_plugin.certificates.contract import Certifier
from robust_plugin.evaluation.arguments import rows_of
from robust_plugin.evaluation.one_pass import Seen, run_rows
from robust_plugin.evaluation.report import Report
from robust_plugin.evaluation.rows import AttackRow, ProofRow, Row
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.files import write_bytes
from robust_plugin.runtime.journal import Fingerprint
from robust_plugin.runtime.progress import ProgressOption
from robust_plugin.runtime.values import check_model
from robust_plugin.threat.model import ThreatModel
from robust_plugin.version import __version__


@explain_wrong_calls
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Sequence[Attack] | Mapping[str, Attack] = (),
    certifier: Certifier | None = None,
    threat: ThreatModel | None = None,
    limits: Mapping[str, int] | None = None,
    adversarial: str | Path | None = None,
    progress: ProgressOption = False,
) -> Report:
    """Measure the clean, robust and certified accuracy of a model on the same points.

    The model runs in evaluation mode. Attacks and the certifier get the points that the model
    classifies correctly. The model's modes, gradients and the global random generators are
    restored; the same call gives the same report.

    Args:
        model: network, pruned or not, with or without a pruner attached.
        loader: batches (x, y) of shapes [B, ...] and [B]; they are moved to the model's device.
        attacks: list of callables ``attack(model, x, y)`` that return adversarial inputs, or a dict
            of them by their names in the report.
        certifier: callable ``certifier(model, x, y)`` that returns one bool per point, whether it
            is proved. A certifier with a method ``decide``, such as ``Verifier``, also tells which
            method proved each point. None for no proofs.
        threat: threat model of attacks and certifiers without a ``threat`` attribute; None if all
            have one.
        limits: for an attack's name, or ``"certified"``, the number of points that it gets, taken
            from the start of the loader; all points if the name is not in the dict.
        adversarial: file to write the adversarial images to, or None. It gets a dict with the
            tensors ``inputs`` and ``labels`` and one tensor per attack, which
            ``torch.load(..., weights_only=True)`` reads.
        progress: True for progress bars of tqdm, or a function that is called with a ``Progress``
            at the start, after each batch and at the end; False to report nothing. Attacks and
            certifiers that have a field ``progress`` of their own, such as AutoAttack and
            ``Verifier``, report to the same place, unless that field is set. If the loader has no
            length, the total is one more than what is done, until the end.

    Returns:
        Report: whether each point is classified correctly, clean and under each attack, and
        whether it is certified, with the accuracies.

    Raises:
        TypeError, ValueError: for inputs, labels, logits or attack results that are not valid, a
            model that is random in evaluation mode (unless all attacks are made for random
            networks), an empty loader, and a point that is certified but fooled by an attack within
            the certified ball.

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
    check_model(model)
    if not isinstance(loader, Iterable) or isinstance(loader, str):
        raise TypeError(
            f"loader is a {type(loader).__name__}; give batches (x, y), as a DataLoader yields."
        )
    if adversarial is not None and not isinstance(adversarial, str | Path):
        raise TypeError(f"adversarial is {adversarial!r}; give the name of a file.")
    if adversarial is not None and Path(adversarial).is_dir():
        raise ValueError(f"adversarial is {adversarial}, a folder; give the name of a file.")
    rows = rows_of(
        attacks,
        certifier,
        threat,
        limits or {},
        keep=adversarial is not None,
        progress=progress,
    )
    keep = adversarial is not None or any(row.at_once for row in rows.values())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before = str(Fingerprint(*model.parameters()))
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        attacked(model),
        _findings_of_attacks() as lost,
    ):
        seen = run_rows(model, loader, rows, device, keep=keep, progress=progress)
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
    """Within the context, collect the attacks' warnings about NaN or infinite gradients.

    The context manager yields the list of their texts. All other warnings of the class
    SuspectNetwork are not shown: ``evaluate`` checks the network for the same defects, and lists
    them in the report.
    """
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


def _report(seen: Seen, rows: Mapping[str, Row]) -> Report:
    """Return the report of a finished evaluation.

    Args:
        seen: the evaluated points with their clean results.
        rows: the results of each attack and of the certifier, by name.

    Raises:
        ValueError: if an attack fools a certified point within the certified ball.
    """
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
    """Return the versions of this package, torch and the libraries behind the attacks, by name.

    Args:
        rows: the results of each attack and of the certifier, by name.
    """
    ours = {"robust_plugin": __version__, "torch": torch.__version__}
    return {name: each for row in rows.values() for name, each in row.versions.items()} | ours


def _write(path: Path, seen: Seen, rows: Mapping[str, Row]) -> None:
    """Write inputs, labels and the adversarial images of each attack to a file.

    Args:
        path: the file.
        seen: the evaluated points, with their batches.
        rows: the results of each attack and of the certifier, by name.
    """
    x, y = seen.together()
    images = {
        name: torch.cat(row.images) for name, row in rows.items() if isinstance(row, AttackRow)
    }
    buffer = io.BytesIO()
    torch.save({"inputs": x.cpu(), "labels": y.cpu(), **images}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
