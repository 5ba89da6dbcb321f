"""The rows of a report while they are found: an attack's, and a certifier's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, guarded
from robust_plugin.attacks.logits import check_logits
from robust_plugin.certificates.contract import Certifier
from robust_plugin.threat.model import ThreatModel

# Names that mean something else in a report, or in the file of adversarial images.
_RESERVED = ("clean", "worst case", "certified", "inputs", "labels")


# Points in one forward pass where an attack returned all of them at once.
_FORWARD = 250


@dataclass
class AttackRow:
    """One attack, and what it has found so far.

    Attributes:
        attack: returns adversarial inputs and how far each point moved, where it measures that
            itself; infinite elsewhere.
        threat: norm, eps and bounds.
        at_once: whether it gets all points in one call.
        keep: whether its inputs are kept.
        searches: whether it looks for distances, beyond the ball.
        for_random: whether it is made for networks that are random on purpose.
        check_classes: raises for a number of classes that the attack does not take.
        check_points: raises for inputs [B, ...] of a shape that the attack does not take.
        made_of: the attack with its settings, in words.
        versions: of the libraries behind it, by name.
        room: how many points it still gets.
        flags: whether each point withstood.
        distances: how far each point was moved to fool it, infinite where it stands.
        images: adversarial inputs, clean ones where the point stands.
    """

    attack: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    threat: ThreatModel
    at_once: bool
    keep: bool
    searches: bool = False
    for_random: bool = False
    check_classes: Callable[[int], None] | None = None
    check_points: Callable[[Tensor], None] | None = None
    made_of: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    room: float = math.inf
    flags: list[bool] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, attack: Attack, threat: ThreatModel, *, keep: bool) -> AttackRow:
        """Return the row of an attack; one that has ``search`` measures distances itself."""
        search = getattr(attack, "search", None)
        under_guard = guarded(attack, threat)

        def plain(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return under_guard(model, x, y), x.new_full((len(x),), torch.inf)

        return cls(
            search or plain,
            threat,
            at_once=bool(getattr(attack, "whole", False)),
            keep=keep,
            searches=search is not None,
            for_random=bool(getattr(attack, "for_random", False)),
            check_classes=getattr(attack, "check_classes", None),
            check_points=getattr(attack, "check_points", None),
            made_of=_described(attack),
            versions=getattr(attack, "versions", {}),
        )

    def take(self, model: nn.Module, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Attack those of the next points that are right clean; all have to be legal inputs."""
        self.threat.check_inputs(x)
        n = int(min(self.room, len(y)))
        self.room -= n
        x, y, kept = x[:n], y[:n], right[:n].clone()
        x_adv, todo = x.clone(), kept.nonzero().flatten()
        distances = torch.where(kept, torch.inf, 0.0).double()
        if len(todo):
            x_adv[todo], found = self.attack(model, x[todo], y[todo])
            distances[todo] = found.double()
            with torch.no_grad():
                for rows in torch.split(todo, _FORWARD):
                    kept[rows] = check_logits(model(x_adv[rows]), y[rows]).argmax(1) == y[rows]
            fooled = todo[~kept[todo]]
            # In the ball, which x + delta - x leaves by rounding.
            moved = self.threat.norms(x_adv[fooled].double() - x[fooled].double())
            distances[fooled] = distances[fooled].minimum(moved.clamp(max=self.threat.eps))
        self.flags += kept.tolist()
        self.distances += distances.tolist()
        if self.keep:
            self.images.append(x_adv.cpu())


@dataclass
class ProofRow:
    """A certifier, and what it has proved so far.

    Attributes:
        certifier: its ``decide``, where it has one, says of each point who proved it.
        threat: norm, eps and bounds.
        name: what it calls itself.
        at_once: whether it gets all points in one call.
        made_of: the certifier with its settings, in words.
        versions: of the libraries behind it, by name.
        room: how many points it still gets.
        flags: whether each point is proved.
        words: each point's verdict.
    """

    certifier: Certifier
    threat: ThreatModel
    name: str
    at_once: bool = False
    made_of: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    room: float = math.inf
    flags: list[bool] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def take(self, model: nn.Module, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Prove those of the next points that are right clean.

        Raises:
            TypeError: if the certifier returns something else than a bool a point.
        """
        n = int(min(self.room, len(y)))
        self.room -= n
        kept, words = right[:n].clone(), ["misclassified"] * n
        todo = kept.nonzero().flatten()
        if len(todo):
            proved, said = self._decided(model, x[todo], y[todo])
            kept[todo] = proved.to(kept.device)
            for place, verdict in zip(todo.tolist(), said, strict=True):
                words[place] = verdict
        self.flags += kept.tolist()
        self.words += words

    def _decided(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[str]]:
        if hasattr(self.certifier, "decide"):
            found = self.certifier.decide(model, x, y)
            return torch.tensor(found.verified), found.words
        proved = self.certifier(model, x, y)
        if not (
            isinstance(proved, Tensor) and proved.dtype == torch.bool and proved.shape == y.shape
        ):
            shown = (
                f"{proved.dtype} of shape {tuple(proved.shape)}"
                if isinstance(proved, Tensor)
                else type(proved).__name__
            )
            raise TypeError(
                f"the certifier returned {shown} for {len(y)} points; legal: a bool tensor, "
                "one a point."
            )
        return proved, [f"verified by {self.name}" if p else "unknown" for p in proved.tolist()]


Row = AttackRow | ProofRow


def rows_of(
    attacks: Sequence[Attack] | Mapping[str, Attack],
    certifier: Certifier | None,
    threat: ThreatModel | None,
    limits: Mapping[str, int],
    *,
    keep: bool,
) -> dict[str, Row]:
    """Return the rows of an evaluation by name: the attacks, and ``"certified"``.

    Args:
        attacks: any callables ``attack(model, x, y)``, or a dict of them by the row's name.
        certifier: or none.
        threat: of those that bring none of their own.
        limits: how many points a row gets, by its name.
        keep: whether adversarial inputs are kept.

    Raises:
        TypeError: for attacks that are no list of callables, a certifier that is none, or limits
            that are no mapping.
        ValueError: for one without a threat model, two of one name, or limits of rows that are not
            there or below one point.
    """
    if callable(attacks) or not isinstance(attacks, Iterable):
        raise TypeError(f"attacks is {attacks!r}; give a list of attacks.")
    if not (certifier is None or callable(certifier)):
        raise TypeError(f"certifier is {certifier!r}; give a callable, such as IBP(threat).")
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits is {limits!r}; give a dict of points by the row's name.")
    rows: dict[str, Row] = {}
    given = attacks.items() if isinstance(attacks, Mapping) else ((None, a) for a in attacks)
    for title, attack in given:
        _check_attack(attack)
        own, name = getattr(attack, "threat", threat), title or _name(attack)
        if own is None:
            raise ValueError(f"{name} says no threat model; give evaluate(..., threat=...).")
        if name in rows or name in _RESERVED:
            raise ValueError(
                f"two rows would be called {name!r}; give attacks={{name: attack}} with names of "
                "your own."
            )
        rows[name] = AttackRow.of(attack, own, keep=keep)
    if certifier is not None:
        own = getattr(certifier, "threat", threat)
        if own is None:
            raise ValueError("the certifier says no threat model; give evaluate(..., threat=...).")
        whole = bool(getattr(certifier, "whole", False))
        versions = getattr(certifier, "versions", {})
        rows["certified"] = ProofRow(
            certifier, own, _name(certifier), whole, _described(certifier), versions
        )
    if unknown := set(limits) - set(rows):
        raise ValueError(f"limits name {sorted(unknown)}; the rows are {list(rows)}.")
    for name, room in limits.items():
        if not isinstance(room, int) or room < 1:
            raise ValueError(f"the limit of {name} is {room!r}; legal: at least 1 point, whole.")
        rows[name].room = room
    return rows


def _check_attack(attack: object) -> None:
    """Raise a TypeError unless it can be called as ``attack(model, x, y)``."""
    shown = getattr(attack, "__name__", type(attack).__name__)
    if isinstance(attack, type):
        raise TypeError(f"{shown} is a class; give an attack made of it, such as {shown}(threat).")
    if not callable(attack):
        raise TypeError(f"{attack!r} is no attack; give callables, such as pgd(threat).")
    if any(kind.__module__.startswith("torchattacks.") for kind in type(attack).__mro__):
        raise TypeError(
            f"torchattacks.{shown} is called as attack(x, y), on a model of its own; give "
            f"TorchAttack(torchattacks.{shown}, threat) of robust_plugin.adapters.torchattacks."
        )
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    try:
        signature.bind("model", "x", "y")
    except TypeError as error:
        raise TypeError(
            f"{shown} cannot be called as attack(model, x, y) ({error}); if it makes an attack, "
            f"give what it returns, such as {shown}(threat)."
        ) from error


def _described(of: object) -> str:
    """Return what a row ran, in words that another process would give too."""
    text = repr(of)
    if " at 0x" not in text:
        return text
    function = of if hasattr(of, "__qualname__") else type(of)
    return f"{function.__module__}.{function.__qualname__}"


def _name(of: Any) -> str:
    return str(getattr(of, "name", getattr(of, "__name__", type(of).__name__)))
