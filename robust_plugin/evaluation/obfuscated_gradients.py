"""Checks for obfuscated gradients: is a network robust, or do gradient attacks just fail on it?

The checks are those of Athalye et al. 2018, section 3.1, and Carlini et al. 2019, section 5. The
result of each is a statement, whether it holds, and the measured accuracies or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.contract import Attack, attacked, guarded
from robust_plugin.attacks.logits import check_logits, naming_inputs
from robust_plugin.attacks.projected_gradient import PGD, pgd
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import AllFooled, Survivors
from robust_plugin.evaluation.obfuscation_verdict import Check, Obfuscation
from robust_plugin.evaluation.sanity import refuse_random
from robust_plugin.runtime.random import forked
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat

# Attacks of equal strength may differ by this share of the points, or by this number of points.
_NOISE, _FEW = 0.03, 2
# The largest share of points that may stay robust at an unbounded radius.
_NOTHING = 0.02
# Number of queries of the Square attack.
_QUERIES = 500
# If [low, high] is infinite or very wide, the "unbounded" radius reaches this many times eps beyond
# the inputs' values.
_FAR = 100


def obfuscation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    parent: nn.Module | None = None,
    seed: int = 0,
) -> Obfuscation:
    """Check a network for obfuscated gradients, which make robust accuracy look too high.

    These statements hold for a network without obfuscated gradients: accuracy falls to 0 at an
    unbounded radius; it never rises with the radius or with the number of steps; the loss rises
    with the steps of the attack; and neither an attack without gradients nor adversarial examples
    made on another network (``parent``) fool points that PGD does not fool.
    Shares of points that should be equal may differ by 3 %, or by two points.

    Args:
        model: network; it runs in evaluation mode, and its modes are restored.
        x: inputs, shape [B, ...]; a hundred are enough. There is no verdict if the network
            classifies fewer than 50 of them correctly.
        y: labels, shape [B].
        threat: threat model with norm Linf or L2.
        parent: another network of the same classes, such as the dense network before pruning; None
            to leave out the check with its adversarial examples.
        seed: seed of the attacks; the global generator is restored.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for a norm that PGD does not support, eps = 0, or if the network classifies no
            point correctly.
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
        white = _right_under(model, pgd(threat, steps=50, restarts=2, keep="best"), x, y)
        checks = [
            _unbounded(model, x, y, threat),
            _by_radius(model, x, y, threat),
            *_by_steps(model, x, y, threat),
            _without_gradients(model, x, y, threat, white),
        ]
        if parent is not None:
            checks.append(_transfer(model, parent, x, y, threat, white))
    return Obfuscation(tuple(checks), len(x))


def _right_under(model: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Return which points are still classified correctly under an attack; bool, shape [B]."""
    x_adv = attack(model, x, y)
    with torch.no_grad():
        found: Tensor = model(x_adv).argmax(1) == y
    return found


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())


def _scaled(threat: ThreatModel, factor: float) -> ThreatModel:
    """Return the threat model with eps times a factor; in Linf at most eps = high - low."""
    eps = threat.eps * factor
    eps = min(eps, threat.high - threat.low) if threat.norm == "Linf" else eps
    return threat.with_radius(eps)


def _unbounded(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    """Check that PGD fools almost all points if the ball contains all of [low, high]."""
    threat = threat.narrowed(x, reach=_FAR * threat.eps)
    width = threat.high - threat.low
    radius = width if threat.norm == "Linf" else width * x[0].numel() ** 0.5
    attack = pgd(_scaled(threat, radius / threat.eps), steps=50, restarts=2, keep="best")
    left = _share(_right_under(model, attack, x, y))
    return Check(
        "accuracy falls to nothing where the radius is the whole box",
        left <= _NOTHING,
        f"{left:.1%} of the points stand",
    )


def _noise(n: int) -> float:
    """Return by which share of n points the results of attacks of equal strength may differ."""
    return max(_NOISE, _FEW / n)


def _falls(shares: Sequence[float], n: int) -> bool:
    """Return whether the shares never rise from one to the next, up to noise.

    Args:
        shares: shares of points that are still classified correctly, from weak to strong attacks.
        n: number of points.
    """
    return all(b <= a + _noise(n) for a, b in zip(shares[:-1], shares[1:], strict=True))


def _by_radius(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    """Check that accuracy under PGD never rises with the radius."""
    factors = (0.25, 0.5, 1.0, 2.0, 4.0)
    balls = [_scaled(threat, factor) for factor in factors]
    shares = [_share(_right_under(model, pgd(b, steps=20, keep="best"), x, y)) for b in balls]
    shown = ", ".join(f"{b.fraction}: {share:.1%}" for b, share in zip(balls, shares, strict=True))
    return Check("accuracy never rises with the radius", _falls(shares, len(x)), shown)


def _by_steps(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[Check]:
    """Check that accuracy never rises, and the loss never falls, with the number of PGD's steps.

    Returns:
        list: one check of the accuracy and one of the loss.
    """
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
    """Check that Square, an attack without gradients, fools no points that PGD does not fool.

    Args:
        model: the network, in evaluation mode.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
        threat: threat model of both attacks.
        white: whether each point is still classified correctly under PGD; bool, shape [B].
    """
    name = "gradients do no worse than an attack without them"
    if x.dim() != 4:
        return Check(name, None, f"Square needs images, these are of shape {tuple(x.shape)}")

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        box = UnitBox(model, threat, x)
        points = Survivors(box, box.shrunk(x), y, box.threat)
        with suppress(AllFooled):
            square(points, queries=_QUERIES, share=0.8)
        return threat.project(box.grown(points.x_adv), x)

    black = _right_under(model, guarded(attack, threat), x, y)
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
    """Check that adversarial examples made on the parent fool no points that PGD does not fool.

    Args:
        model: the network, in evaluation mode.
        parent: the other network.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
        threat: threat model of both attacks.
        white: whether each point is still classified correctly under PGD; bool, shape [B].
    """
    x_adv = pgd(threat, steps=50, keep="best")(parent, x, y)
    with torch.no_grad():
        right = model(x_adv).argmax(1) == y
    only = _share(white & ~right)
    return Check(
        "gradients do no worse than inputs made against the parent",
        only <= _noise(len(x)),
        f"PGD leaves {_share(white):.1%}, transfer {_share(right):.1%}; {only:.1%} fall to "
        "transfer alone",
    )
