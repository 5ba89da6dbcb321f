"""The attacks and the certifier of a running evaluation, with their results so far.

Each object stands for one row of the report's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, guarded
from robust_plugin.attacks.logits import check_logits
from robust_plugin.certificates.contract import Certifier
from robust_plugin.threat.model import ThreatModel

# Number of points in one forward pass, for attacks that return all points at once.
_FORWARD = 250


@dataclass
class AttackRow:
    """One attack of an evaluation and its results so far.

    Attributes:
        attack: function ``attack(model, x, y)`` that returns adversarial inputs, shape [B, ...],
            and how far each point was moved, shape [B]; infinite if the attack does not measure
            that.
        threat: threat model of the attack.
        at_once: whether the attack gets all points in one call.
        keep: whether the adversarial inputs are stored.
        searches: whether the attack searches for the closest adversarial example, also beyond eps.
        for_random: whether the attack is made for networks that are random on purpose.
        check_classes: function that raises for a number of classes the attack cannot handle; None
            if there is no such check.
        check_points: function that raises for inputs [B, ...] of a shape the attack cannot handle;
            None if there is no such check.
        made_of: the attack with its settings, in words.
        versions: versions of the libraries behind the attack, by name.
        room: number of points that the attack may still get.
        flags: for each point so far, whether it is classified correctly under the attack; False if
            it is misclassified without an attack.
        distances: distance of each point so far to its adversarial example, in input units; 0 if
            the point is misclassified without an attack, infinite if it was not fooled.
        images: batches of adversarial inputs, stored only with ``keep``; the clean input for a
            point that is misclassified without an attack.
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
    def for_attack(cls, attack: Attack, threat: ThreatModel, *, keep: bool) -> AttackRow:
        """Return an object for an attack, without results.

        If the attack has a method ``search``, the evaluation calls that instead of the attack; it
        returns adversarial inputs and distances.

        Args:
            attack: callable ``attack(model, x, y)``. The attributes that it may have in common with
                this class are read from it.
            threat: threat model of the attack.
            keep: whether the adversarial inputs are stored.
        """
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
            made_of=described(attack),
            versions=getattr(attack, "versions", {}),
        )

    def run(self, model: nn.Module, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Attack the next points, and add the results to the attributes.

        The attack does not get points that the model misclassifies anyway, nor points beyond its
        limit.

        Args:
            model: the network, in evaluation mode.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
            right: whether each clean point is classified correctly; bool, shape [B].
        """
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
            # Clamped, because by rounding x + delta - x may be longer than eps.
            moved = self.threat.norms(x_adv[fooled].double() - x[fooled].double())
            distances[fooled] = distances[fooled].minimum(moved.clamp(max=self.threat.eps))
        self.flags += kept.tolist()
        self.distances += distances.tolist()
        if self.keep:
            self.images.append(x_adv.cpu())


@dataclass
class ProofRow:
    """The certifier of an evaluation and its results so far.

    Attributes:
        certifier: callable ``certifier(model, x, y)``. If it has a method ``decide``, that is
            called instead and returns each point's verdict.
        threat: threat model of the proofs.
        name: name of the certifier.
        at_once: whether the certifier gets all points in one call.
        made_of: the certifier with its settings, in words.
        versions: versions of the libraries behind the certifier, by name.
        room: number of points that the certifier may still get.
        flags: for each point so far, whether it is classified correctly and proved.
        words: verdict on each point so far, such as ``"verified by IBP"``.
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

    def run(self, model: nn.Module, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Run the certifier on the next points, and add the results to the attributes.

        The certifier does not get points that the model misclassifies, nor points beyond its limit.

        Args:
            model: the network, in evaluation mode.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
            right: whether each clean point is classified correctly; bool, shape [B].

        Raises:
            TypeError: if the certifier does not return one bool per point.
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
        """Run the certifier, and return which points are proved, and all verdicts in words.

        Args:
            model: the network, in evaluation mode.
            x: inputs, shape [B, ...].
            y: labels, shape [B].

        Raises:
            TypeError: if the certifier does not return one bool per point.
        """
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
                "one per point."
            )
        return proved, [f"verified by {self.name}" if p else "unknown" for p in proved.tolist()]


Row = AttackRow | ProofRow


def described(method: object) -> str:
    """Return an attack or certifier with its settings in words, the same in every process.

    That is its attribute ``settings``, or its repr without such an attribute. If the text has a
    memory address, it is the name of the function or class.
    """
    text = str(getattr(method, "settings", None) or repr(method))
    if " at 0x" not in text:
        return text
    function = method if hasattr(method, "__qualname__") else type(method)
    return f"{function.__module__}.{function.__qualname__}"
