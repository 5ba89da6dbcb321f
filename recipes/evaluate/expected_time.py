"""Expected time of an evaluation, measured on a few points before it begins.

The time of an attack is (number of passes of the network per point) x (measured time of a pass) x
(number of points that take all passes). Attacks of AutoAttack skip points that are already fooled,
so this number depends on how robust the network is: PGD estimates it on the few points, and the
95 % interval of that share gives the range. Proofs have no known number of passes; a few are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.certificates.contract import Certifier
from robust_plugin.copies.fast import fast_copy
from robust_plugin.recipes.evaluate.measure import first_points
from robust_plugin.recipes.evaluate.plan import Plan
from robust_plugin.recipes.evaluate.security_curve import CURVE_TASK
from robust_plugin.runtime.random import forked
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import ThreatModel

_POINTS = 64  # points that the time of a pass is measured on, on a CPU
_PROOFS = 4  # points that proofs are timed on
_PATIENCE = 10.0  # seconds after which no further proof is timed

# Passes per point that survives: (gradients, forward passes alone) of each component of AutoAttack.
# A targeted component has up to nine targets; the number for one target is given. A step of FAB
# computes a gradient and projects, which takes about 1.6 times as long as the gradient alone.
_PASSES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "standard": {
        "apgd-ce": (100, 0),
        "apgd-t": (100, 0),
        "fab-t": (160, 0),
        "square": (0, 5000),
    },
    "plus": {
        "apgd-ce": (500, 0),
        "apgd-dlr": (500, 0),
        "fab": (800, 0),
        "square": (0, 5000),
        "apgd-t": (100, 0),
        "fab-t": (160, 0),
    },
    "rand": {"apgd-ce": (2000, 0), "apgd-dlr": (2000, 0)},
    "screen": {"apgd-ce": (100, 0), "apgd-t": (100, 0)},
}
_TARGETS = 9
_CHECKS = (376, 500)  # passes of the checks for obfuscated gradients, per point


@dataclass(frozen=True)
class Expected:
    """Expected time of one task.

    Attributes:
        task: beginning of the name under which the task is reported, such as ``"verify"``.
        what: the task for a reader, such as ``"AutoAttack: apgd-t"``.
        points: number of points.
        low: seconds if the few points were among the harder ones to survive for the whole set.
        seconds: expected seconds.
        high: seconds if more points survive than among the few.
    """

    task: str
    what: str
    points: int
    low: float
    seconds: float
    high: float


@dataclass(frozen=True)
class Sample:
    """What a few points say about a network.

    Attributes:
        n: number of points.
        gradient: seconds of a forward and backward pass of one point.
        forward: seconds of a forward pass of one point.
        correct: number of points that the network classifies correctly.
        robust: number of points that it also classifies correctly under PGD-10.
        proofs: seconds per point of each proof that was timed.
    """

    n: int
    gradient: float
    forward: float
    correct: int
    robust: int
    proofs: tuple[float, ...]


def sampled(
    model: nn.Module,
    points: Dataset[Any],
    threat: ThreatModel,
    plan: Plan,
    *,
    trained: bool = True,
) -> Sample:
    """Measure a network on a few points; the global generator is restored.

    Args:
        model: network in evaluation mode.
        points: pairs (x, y), of which the first ones are used.
        threat: the threat model of the evaluation.
        plan: what the evaluation does.
        trained: whether the shares of correct and robust points mean anything. If False, all points
            count as robust, and proofs are timed for the predicted classes, so that the times are
            upper bounds.
    """
    device = next(model.parameters()).device
    size = plan.batch_size if device.type == "cuda" else min(_POINTS, plan.batch_size)
    x, y = first_points(points, size, device)
    n = len(x)
    with forked(0, device):
        copy = fast_copy(model, x)
        gradient = _seconds(lambda: _gradients(copy, x, y), device) / n
        forward = _seconds(lambda: _forward(copy, x), device) / n
        predicted = _forward(model, x).argmax(1)
        y = y if trained else predicted
        right = predicted == y
        robust = right
        if trained and threat.norm != "L1" and threat.eps > 0 and bool(right.any()):
            x_adv = pgd(threat)(model, x[right], y[right])
            robust = right.clone()
            robust[right] = _forward(model, x_adv).argmax(1) == y[right]
        proofs: tuple[float, ...] = ()
        if plan.certifier is not None and plan.verify:
            rows = right.nonzero().flatten()[: min(_PROOFS, plan.verify)]
            proofs = _timed_proofs(plan.certifier, model, x[rows], y[rows])
    return Sample(n, gradient, forward, int(right.sum()), int(robust.sum()), proofs)


def expected_times(sample: Sample, plan: Plan, *, classes: int) -> tuple[Expected, ...]:
    """Return the expected time of each task of an evaluation.

    Args:
        sample: what a few points say about the network.
        plan: what the evaluation does.
        classes: number of classes of the network.
    """
    found = []
    correct, robust = _share(sample.correct, sample.n), _share(sample.robust, sample.n)
    whole = (1.0, 1.0, 1.0)
    if plan.checks:
        seconds = _CHECKS[0] * sample.gradient + _CHECKS[1] * sample.forward
        what = "checks for obfuscated gradients"
        found.append(_expected(what, what, plan.checks, seconds, correct))
    if plan.steps:
        seconds = plan.steps * sample.gradient
        found.append(_expected("evaluate", "PGD", plan.points, seconds, correct))
    if plan.search:
        seconds = min(_TARGETS, classes - 1) * plan.search * sample.gradient
        found.append(_expected("evaluate", "FAB, nearest examples", plan.points, seconds, correct))
    for version, n in plan.autoattack.items():
        title = {"standard": "AutoAttack", "screen": "screening (apgd-ce, apgd-t)"}.get(
            version, f"AutoAttack {version}"
        )
        for number, (name, (gradients, forwards)) in enumerate(_PASSES[version].items()):
            targets = min(_TARGETS, classes - 1) if name.endswith("-t") else 1
            seconds = targets * (gradients * sample.gradient + forwards * sample.forward)
            task = f"{title}: {name}"
            left = correct if number == 0 else robust  # the first attack meets all correct points
            found.append(_expected(task, task, n, seconds / plan.processes, left))
    if plan.verify and sample.proofs:
        mean = sum(sample.proofs) / len(sample.proofs)
        low, share, high = correct
        found.append(
            Expected(
                "verify",
                "proofs",
                plan.verify,
                plan.verify * low * min(sample.proofs),
                plan.verify * share * mean,
                plan.verify * high * max(sample.proofs),
            )
        )
    if plan.smooth:
        seconds = plan.votes * sample.forward
        found.append(_expected("randomized smoothing", "smoothing", plan.smooth, seconds, whole))
    if plan.curve:
        seconds = plan.curve_steps * sample.gradient
        found.append(_expected(CURVE_TASK, CURVE_TASK, plan.curve, seconds, correct))
    return tuple(found)


def expected_seconds(
    model: nn.Module,
    points: Dataset[Any],
    threat: ThreatModel,
    plan: Plan,
    *,
    classes: int,
    trained: bool = True,
) -> dict[str, float]:
    """Return the expected seconds of each task of an evaluation, for the time left of a run.

    Without AutoAttack, proofs and smoothing, nothing is measured, and the dict is empty.

    Args:
        model: network in evaluation mode.
        points: pairs (x, y), of which a few are used.
        threat: the threat model of the evaluation.
        plan: what the evaluation does.
        classes: number of classes of the network.
        trained: False gives upper bounds, for a network that will still be trained.
    """
    if not (plan.autoattack or plan.verify or plan.smooth or plan.search):
        return {}
    sample = sampled(model, points, threat, plan, trained=trained)
    found: dict[str, float] = {}
    for each in expected_times(sample, plan, classes=classes):
        found[each.task] = found.get(each.task, 0.0) + each.seconds
    return found


def _expected(
    task: str, what: str, n: int, seconds: float, share: tuple[float, float, float]
) -> Expected:
    """Return the expected time of n points that take some seconds each if they survive."""
    low, middle, high = (n * seconds * each for each in share)
    return Expected(task, what, n, low, middle, high)


def _share(count: int, n: int) -> tuple[float, float, float]:
    """Return the lower end of the 95 % interval of a share, the share, and the upper end."""
    low, high = wilson_interval(count, n)
    return low, count / n, high


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return gradient


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of one call, the mean of three after a call that is not counted."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    before = time.perf_counter()
    for _ in range(3):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - before) / 3


def _timed_proofs(
    certifier: Certifier, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[float, ...]:
    """Return the seconds that proofs of single points take; stop when it takes too long."""
    found: list[float] = []
    for row in range(len(x)):
        before = time.perf_counter()
        certifier(model, x[row : row + 1], y[row : row + 1])
        found.append(time.perf_counter() - before)
        if sum(found) > _PATIENCE:
            break
    return tuple(found)
