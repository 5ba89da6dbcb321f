"""Checks for obfuscated gradients: is a network robust, or do gradient attacks just fail on it?

The checks are those of Athalye et al. 2018, section 3.1, and Carlini et al. 2019, section 5. The
result of each is a statement, whether it holds, and the measured accuracies or losses.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.progress import ProgressOption, reporting
from robust_plugin.runtime.random import forked
from robust_plugin.runtime.values import check_call
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat

# Attacks of equal strength may differ by this share of the points, or by this number of points.
_NOISE, _FEW = 0.03, 2
# The largest share of points that may stay robust at an unbounded radius.
NOTHING = 0.02
# Number of queries of the Square attack.
_QUERIES = 500
# If [low, high] is infinite or very wide, the "unbounded" radius reaches this many times eps beyond
# the inputs' values.
_FAR = 100


@explain_wrong_calls
def obfuscation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    parent: nn.Module | None = None,
    seed: int = 0,
    progress: ProgressOption = False,
) -> Obfuscation:
    """Check a network for obfuscated gradients, which make robust accuracy look too high.

    These statements hold for a network without obfuscated gradients: accuracy falls to 0 at an
    unbounded radius; it does not rise with the radius or with the number of steps; the loss rises
    with the steps of the attack; and neither an attack without gradients nor adversarial examples
    made on another network (``parent``) fool points that PGD does not fool.

    Each statement has a tolerance, which the result of its check names: random starts alone move
    the accuracy under an attack by some points. Shares of points that should be equal may differ
    by 3 % of the points or by two points, whichever is more; 2 % of the points may stay robust at
    an unbounded radius; and the loss may fall by 3 % from one number of steps to the next.

    Args:
        model: network; it runs in evaluation mode, and its modes are restored.
        x: inputs, shape [B, ...]; a hundred are enough. There is no verdict if the network
            classifies fewer than 50 of them correctly.
        y: labels, shape [B].
        threat: threat model with norm Linf or L2.
        parent: another network of the same classes, such as the dense network before pruning; None
            to leave out the check with its adversarial examples.
        seed: seed of the attacks; the global generator is restored.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start, after each part of the checks and at the end; False to report nothing.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for a norm that PGD does not support, eps = 0, or if the network classifies no
            point correctly.
    """
    check_call(model, x, y)
    if check_threat(threat).eps == 0:
        raise ValueError("eps is 0; there is nothing to check without a radius.")
    with forked(seed, x.device), attacked(model):
        with torch.no_grad(), naming_inputs(model, x):
            logits = check_logits(model(x), y)
            refuse_random(model, x, logits)
            y = y.long()
            right = (logits.argmax(1) == y).nonzero().flatten()
        if len(right) == 0:
            raise ValueError("the network gets none of these points right; give others.")
        x, y = x[right], y[right]
        parts, task = 5 + (parent is not None), "checks for obfuscated gradients"
        with reporting(progress, task, total=parts, unit="parts") as show:
            white = _right_under(model, pgd(threat, steps=50, restarts=2, keep="best"), x, y)
            show(1)
            checks = [_unbounded(model, x, y, threat)]
            show(2)
            checks.append(_by_radius(model, x, y, threat))
            show(3)
            checks += _by_steps(model, x, y, threat)
            show(4)
            checks.append(_without_gradients(model, x, y, threat, white))
            show(5)
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


def whole_box(threat: ThreatModel, x: Tensor) -> ThreatModel:
    """Return the threat model with a radius so large that each ball contains all of [low, high].

    That is high - low in Linf, and the square root of the number of values of a point times as much
    in L2. A box that is infinite or very wide is replaced by one around the inputs.

    Args:
        threat: threat model with norm Linf or L2.
        x: inputs, shape [B, ...].
    """
    threat = threat.narrowed(x, reach=_FAR * threat.eps)
    width = threat.high - threat.low
    return threat.with_radius(width if threat.norm == "Linf" else width * x[0].numel() ** 0.5)


def _unbounded(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    """Check that PGD fools almost all points if the ball contains all of [low, high]."""
    attack = pgd(whole_box(threat, x), steps=50, restarts=2, keep="best")
    left = _share(_right_under(model, attack, x, y))
    return Check(
        "accuracy falls to nothing where the radius is the whole box",
        left <= NOTHING,
        f"{left:.1%} of the points stand; up to {NOTHING:.1%} are allowed",
    )


def _within(share: float, n: int) -> bool:
    """Return whether attacks of equal strength may differ by a share of n points."""
    return round(share * n) <= max(_NOISE * n, _FEW)  # in whole points, so that rounding is no rise


def _allowed(n: int) -> str:
    """Return in words by how much attacks of equal strength may differ on n points."""
    share = max(_NOISE, _FEW / n)
    why = f"{_NOISE:.0%} of the {n}" if share == _NOISE else f"{_FEW} of {n}"
    return f"up to {share:.1%} are allowed ({why} points)"


def _falling(name: str, shares: Mapping[str, float], n: int) -> Check:
    """Check that accuracies do not rise from one attack to the next by more than the tolerance.

    Args:
        name: the statement that is checked.
        shares: share of points that are still classified correctly under each attack, by its radius
            or number of steps in words, from the weakest attack to the strongest.
        n: number of points.
    """
    values = list(shares.values())
    rise = max(b - a for a, b in zip(values[:-1], values[1:], strict=True))
    found = ", ".join(f"{attack}: {share:.1%}" for attack, share in shares.items())
    said = f"the largest rise is {rise:.1%}" if rise > 0 else "it rises nowhere"
    return Check(name, _within(rise, n), f"{found}; {said}; {_allowed(n)}")


def _by_radius(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Check:
    """Check that accuracy under PGD does not rise with the radius."""
    factors = (0.25, 0.5, 1.0, 2.0, 4.0)
    balls = [_scaled(threat, factor) for factor in factors]
    shares = {
        b.fraction: _share(_right_under(model, pgd(b, steps=20, keep="best"), x, y)) for b in balls
    }
    return _falling("accuracy does not rise with the radius", shares, len(x))


def _by_steps(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[Check]:
    """Check that accuracy does not rise, nor the loss fall, with the number of PGD's steps.

    Returns:
        list: one check of the accuracy and one of the loss.
    """
    counts = (1, 5, 20, 50)
    shares: dict[str, float] = {}
    losses: list[float] = []
    with torch.no_grad():
        losses.append(float(F.cross_entropy(model(x), y)))
    for steps in counts:
        x_adv = PGD(threat, steps, threat.eps / 4, "ce", "uniform", 1, "last")(model, x, y)
        with torch.no_grad():
            logits = model(x_adv)
        shares[str(steps)] = _share(logits.argmax(1) == y)
        losses.append(float(F.cross_entropy(logits, y)))
    fall = max(0.0 if b >= a else 1 - b / a for a, b in zip(losses[:-1], losses[1:], strict=True))
    said = f"the largest fall is {fall:.1%}" if fall > 0 else "it falls nowhere"
    return [
        _falling("accuracy does not rise with the steps", shares, len(x)),
        Check(
            "the loss rises along the attack",
            fall <= _NOISE and losses[-1] > losses[0],
            f"clean {', then '.join(f'{loss:.3g}' for loss in losses)}; {said}; up to {_NOISE:.0%} "
            "is allowed, if the last is above the first",
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
        _within(only, len(x)),
        f"PGD leaves {_share(white):.1%}, Square {_share(black):.1%}; {only:.1%} fall to Square "
        f"alone; {_allowed(len(x))}",
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
        _within(only, len(x)),
        f"PGD leaves {_share(white):.1%}, transfer {_share(right):.1%}; {only:.1%} fall to "
        f"transfer alone; {_allowed(len(x))}",
    )
