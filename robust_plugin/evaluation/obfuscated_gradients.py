"""Obfuscated gradients: whether robust accuracy is robustness, or attacks that cannot see.

The checks of Athalye et al. 2018, section 3.1, and Carlini et al. 2019, section 5, each a sentence
with the figures that it rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.contract import Attack, attacked, guarded
from robust_plugin.attacks.logits import check_logits, naming_inputs
from robust_plugin.attacks.projected_gradient import PGD, pgd
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import AllFooled, Standing
from robust_plugin.evaluation.sanity import refuse_random
from robust_plugin.runtime.random import forked
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat

# What attacks of equal strength may differ by: a share of the points, or so many of them.
_NOISE, _FEW = 0.03, 2
# A network that no more than this share of the points withstands at an unbounded radius sees all.
_NOTHING = 0.02
# The fewest points of which that share is one whole point. With fewer, one point on which PGD fails
# would condemn an honest network, and no sign would say little: none of 50 leaves up to 6 % of all
# points open (95 %, the rule of three).
_ENOUGH = 50
_QUERIES = 500
# In a box without bounds, or very wide, how many radii beyond the inputs' values the unbounded
# radius goes.
_FAR = 100


@dataclass(frozen=True)
class Check:
    """One question, and what was found.

    Attributes:
        name: the question.
        passed: None where it could not be asked.
        detail: the figures, in words.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Obfuscation:
    """What the checks found.

    Attributes:
        checks: in the order they ran.
        n: points that they looked at, all right clean.
    """

    checks: tuple[Check, ...]
    n: int

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that speak against the figures."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """One sentence; of fewer than 50 points, that they are too few."""
        names = "; ".join(check.name for check in self.failed)
        if self.n < _ENOUGH:
            missed = f" (on these do not hold: {names})" if names else ""
            return (
                f"too few points for a verdict on obfuscated gradients: {self.n} are right clean, "
                f"and it takes {_ENOUGH}{missed}"
            )
        if not self.failed:
            ran = sum(check.passed is not None for check in self.checks)
            return f"no sign of obfuscated gradients in {ran} checks on {self.n} points"
        return f"robust accuracy is not to be trusted, for these do not hold: {names}"

    def __str__(self) -> str:
        """Return a line a check, then the verdict."""
        marks = {True: "holds", False: "FAILS", None: "not run"}
        lines = [f"{marks[c.passed]:<8}{c.name}: {c.detail}" for c in self.checks]
        return "\n".join([*lines, self.verdict])


def obfuscation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    parent: nn.Module | None = None,
    seed: int = 0,
) -> Obfuscation:
    """Check whether attacks by gradients see what the network computes.

    Accuracy falls to nothing at an unbounded radius; it never rises with the radius, nor with the
    steps; the loss rises along the attack; neither an attack without gradients nor inputs made
    against another network (the dense parent) do better than gradients. Shares of points may differ
    by 3 %, or two points, where attacks are equally strong.

    Args:
        model: any network; evaluated in evaluation mode and left as it is.
        x: inputs, shape [B, ...]; a hundred are enough, of fewer than 50 that are right clean there
            is no verdict.
        y: labels, shape [B].
        threat: norm (Linf or L2), eps and bounds.
        parent: another network of the same classes, such as the dense one it was pruned from.
        seed: of the attacks; the global generator is left as it was.

    Raises:
        TypeError: for a threat that is no threat model.
        ValueError: for a norm that PGD does not know, eps = 0, or if no point is right clean.
    """
    if check_threat(threat).eps == 0:
        raise ValueError("eps is 0; there is nothing to check without a radius.")
    with forked(seed, x.device), attacked(model):
        with torch.no_grad(), naming_inputs(model, x):
            logits = check_logits(model(x), y)
            refuse_random(model, x, logits)
            right = (logits.argmax(1) == y).nonzero().flatten()
        if len(right) == 0:
            raise ValueError("the network gets none of these points right; give others.")
        x, y = x[right], y[right]
        white = _stands(model, pgd(threat, steps=50, restarts=2, keep="best"), x, y)
        checks = [
            _unbounded(model, x, y, threat),
            _by_radius(model, x, y, threat),
            *_by_steps(model, x, y, threat),
            _without_gradients(model, x, y, threat, white),
        ]
        if parent is not None:
            checks.append(_transfer(model, parent, x, y, threat, white))
    return Obfuscation(tuple(checks), len(x))


def _stands(model: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    x_adv = attack(model, x, y)
    with torch.no_grad():
        found: Tensor = model(x_adv).argmax(1) == y
    return found


def _share(stands: Tensor) -> float:
    return float(stands.float().mean())


def _scaled(threat: ThreatModel, factor: float) -> ThreatModel:
    eps = threat.eps * factor
    eps = min(eps, threat.high - threat.low) if threat.norm == "Linf" else eps
    return threat.with_radius(eps)


def _unbounded(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    threat = threat.narrowed(x, reach=_FAR * threat.eps)
    width = threat.high - threat.low
    whole = width if threat.norm == "Linf" else width * x[0].numel() ** 0.5
    attack = pgd(_scaled(threat, whole / threat.eps), steps=50, restarts=2, keep="best")
    left = _share(_stands(model, attack, x, y))
    return Check(
        "accuracy falls to nothing where the radius is the whole box",
        left <= _NOTHING,
        f"{left:.1%} of the points stand",
    )


def _noise(n: int) -> float:
    """The share of points that attacks of equal strength may differ by."""
    return max(_NOISE, _FEW / n)


def _falls(shares: Sequence[float], n: int) -> bool:
    return all(b <= a + _noise(n) for a, b in zip(shares[:-1], shares[1:], strict=True))


def _by_radius(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    factors = (0.25, 0.5, 1.0, 2.0, 4.0)
    balls = [_scaled(threat, factor) for factor in factors]
    shares = [_share(_stands(model, pgd(b, steps=20, keep="best"), x, y)) for b in balls]
    shown = ", ".join(f"{b.fraction}: {share:.1%}" for b, share in zip(balls, shares, strict=True))
    return Check("accuracy never rises with the radius", _falls(shares, len(x)), shown)


def _by_steps(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[Check]:
    """Accuracy and loss after more and more steps of one size."""
    counts = (1, 5, 20, 50)
    shares, losses = [], []
    with torch.no_grad():
        losses.append(float(F.cross_entropy(model(x), y)))
    for steps in counts:
        x_adv = PGD(threat, steps, threat.eps / 4, "ce", "uniform", 1, "last")(model, x, y)
        with torch.no_grad():
            logits = model(x_adv)
        shares.append(_share(logits.argmax(1) == y))
        losses.append(float(F.cross_entropy(logits, y)))
    labels = [f"{steps}: {share:.1%}" for steps, share in zip(counts, shares, strict=True)]
    rises = all(b >= a * (1 - _NOISE) for a, b in zip(losses[:-1], losses[1:], strict=True))
    return [
        Check("accuracy never rises with the steps", _falls(shares, len(x)), ", ".join(labels)),
        Check(
            "the loss rises along the attack",
            rises and losses[-1] > losses[0],
            "clean " + ", then ".join(f"{loss:.3g}" for loss in losses),
        ),
    ]


def _without_gradients(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, white: Tensor
) -> Check:
    name = "gradients do no worse than an attack without them"
    if x.dim() != 4:
        return Check(name, None, f"Square needs images, these are of shape {tuple(x.shape)}")

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        box = UnitBox(model, threat, x)
        points = Standing(box, box.shrunk(x), y, box.threat)
        with suppress(AllFooled):
            square(points, queries=_QUERIES, share=0.8)
        return threat.project(box.grown(points.x_adv), x)

    black = _stands(model, guarded(attack, threat), x, y)
    only = _share(white & ~black)
    return Check(
        name,
        only <= _noise(len(x)),
        f"PGD leaves {_share(white):.1%}, Square {_share(black):.1%}; {only:.1%} fall to Square "
        "alone",
    )


def _transfer(
    model: nn.Module, parent: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, white: Tensor
) -> Check:
    x_adv = pgd(threat, steps=50, keep="best")(parent, x, y)
    with torch.no_grad():
        stands = model(x_adv).argmax(1) == y
    only = _share(white & ~stands)
    return Check(
        "gradients do no worse than inputs made against the parent",
        only <= _noise(len(x)),
        f"PGD leaves {_share(white):.1%}, transfer {_share(stands):.1%}; {only:.1%} fall to "
        "transfer alone",
    )
