"""Check the arguments of ``evaluate``, and make the objects that collect the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robust_plugin.attacks.contract import Attack, check_attack
from robust_plugin.certificates.contract import Certifier
from robust_plugin.evaluation.rows import AttackRow, ProofRow, Row, described
from robust_plugin.runtime.progress import ProgressOption, check_progress, with_progress
from robust_plugin.threat.model import ThreatModel

# Names that mean something else in a report, or in the file of adversarial images.
_RESERVED = ("clean", "worst case", "certified", "inputs", "labels")


def rows_of(
    attacks: Sequence[Attack] | Mapping[str, Attack],
    certifier: Certifier | None,
    threat: ThreatModel | None,
    limits: Mapping[str, int],
    *,
    keep: bool,
    progress: ProgressOption = False,
) -> dict[str, Row]:
    """Check the arguments, and return an object per attack and certifier that collects its results.

    Each object stands for one row of the report's table. The key is the name of the attack in the
    report, or ``"certified"`` for the certifier.

    Args:
        attacks: callables ``attack(model, x, y)``, or a dict of them by their names in the report.
        certifier: callable ``certifier(model, x, y)``, or None.
        threat: threat model of attacks and certifiers without a ``threat`` attribute, or None.
        limits: for an attack's name, or ``"certified"``, the largest number of points that it gets;
            no limit if the name is not in the dict.
        keep: whether the adversarial inputs are stored.
        progress: what attacks and certifier get as ``progress`` if they have a field of this name
            that is not set.

    Raises:
        TypeError: if the attacks are not a list of callables, the certifier is not callable, or the
            limits are not a mapping.
        ValueError: for an attack or certifier without a threat model, two attacks of the same name,
            and a limit below one point or for a name that does not exist.
    """
    if callable(attacks) or not isinstance(attacks, Iterable):
        raise TypeError(f"attacks is {attacks!r}; give a list of attacks.")
    if not (certifier is None or callable(certifier)):
        raise TypeError(f"certifier is {certifier!r}; give a callable, such as IBP(threat).")
    check_progress(progress)
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits is {limits!r}; give a dict of points by the row's name.")
    rows: dict[str, Row] = {}
    given = attacks.items() if isinstance(attacks, Mapping) else ((None, a) for a in attacks)
    for title, attack in given:
        check_attack(attack)
        own, name = getattr(attack, "threat", threat), title or _name(attack)
        if own is None:
            raise ValueError(f"{name} says no threat model; give evaluate(..., threat=...).")
        if name in rows or name in _RESERVED:
            raise ValueError(
                f"two rows would be called {name!r}; give attacks={{name: attack}} with names of "
                "your own."
            )
        rows[name] = AttackRow.for_attack(with_progress(attack, progress), own, keep=keep)
    if certifier is not None:
        own = getattr(certifier, "threat", threat)
        if own is None:
            raise ValueError("the certifier says no threat model; give evaluate(..., threat=...).")
        whole = bool(getattr(certifier, "whole", False))
        versions = getattr(certifier, "versions", {})
        rows["certified"] = ProofRow(
            with_progress(certifier, progress),
            own,
            _name(certifier),
            whole,
            described(certifier),
            versions,
        )
    if unknown := set(limits) - set(rows):
        raise ValueError(f"limits name {sorted(unknown)}; the rows are {list(rows)}.")
    for name, room in limits.items():
        if not isinstance(room, int) or room < 1:
            raise ValueError(f"the limit of {name} is {room!r}; legal: at least 1 point, whole.")
        rows[name].room = room
    return rows


def _name(method: Any) -> str:
    """Return the attribute ``name`` of an attack or certifier.

    Without this attribute, return the name of the function or class.
    """
    return str(getattr(method, "name", getattr(method, "__name__", type(method).__name__)))
