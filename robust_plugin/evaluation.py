"""Evaluation: one pass over a loader, clean and under every attack, to a Report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.fingerprint import Fingerprint
from robust_plugin.guard import Attack, attacked, check_logits, guarded
from robust_plugin.report import Report
from robust_plugin.sanity import findings, refuse_random
from robust_plugin.threat import ThreatModel

# Points in one forward pass where an attack returned all of them at once.
_FORWARD = 250


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Sequence[Attack] = (),
    threat: ThreatModel | None = None,
    limits: Mapping[str, int] | None = None,
) -> Report:
    """Evaluate a model clean and under attacks, on the same points, in evaluation mode.

    Each attack sees the points that are right clean. Flags, gradients and the global generator
    of the model and the process are left as they were; the same call gives the same report.

    Args:
        model: pruned or not, with or without a pruner attached.
        loader: batches (x [B, ...], y [B]); moved to the model's device.
        attacks: any callables ``attack(model, x, y)``.
        threat: checked around attacks that bring no ``threat`` of their own.
        limits: by attack name, how many of the first points it gets; default all.

    Raises:
        TypeError, ValueError: for inputs, labels, logits or attack results that are not as they
            should be, a forward pass that is random in evaluation mode, or an empty loader.
    """
    named = _named(attacks, threat)
    at_once = {n for n, a in zip(named, attacks, strict=True) if getattr(a, "whole", False)}
    held: list[tuple[Tensor, Tensor]] = []
    limits = dict(limits or {})
    if unknown := set(limits) - set(named):
        raise ValueError(f"limits name {sorted(unknown)}; the attacks are {list(named)}.")
    labels: list[int] = []
    flags: dict[str, list[bool]] = {"clean": [], **{name: [] for name in named}}
    found = ["the model was in training mode; evaluation mode was used"] * model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    seen = Fingerprint()
    with torch.random.fork_rng(devices=devices), attacked(model):
        for batch in loader:
            x, y = _points(batch)
            seen.add(x)
            x, y = x.to(device), y.to(device)
            with torch.no_grad():
                logits = check_logits(model(x), y)
                if not labels:
                    refuse_random(model, x, logits)
                    found += findings(model, x, y)
            right = logits.argmax(1) == y
            flags["clean"] += right.tolist()
            for name in (name for name in named if name not in at_once):
                room = limits.get(name, math.inf) - len(flags[name])
                kept = right[: int(min(room, len(y)))]
                flags[name] += _withstood(model, named[name], x, y, kept).tolist()
            labels += y.tolist()
            held += [(x, y)] if at_once else []
        if held:
            xs, ys = (torch.cat(each) for each in zip(*held, strict=True))
            for name in (name for name in named if name in at_once):
                kept = torch.tensor(flags["clean"], device=device)[: limits.get(name)]
                flags[name] = _withstood(model, named[name], xs, ys, kept).tolist()
    if not labels:
        raise ValueError("the loader is empty; nothing to evaluate.")
    threats = {str(getattr(attack, "threat", threat)) for attack in attacks}
    return Report(
        tuple(labels),
        {row: tuple(each) for row, each in flags.items()},
        "; ".join(sorted(threats)) if threats else None,
        tuple(found),
        str(seen),
    )


def _withstood(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    """Return which of the first points, right clean, are right under an attack too."""
    kept, todo = right.clone(), right.nonzero().flatten()
    if len(todo):
        x_adv = attack(model, x[todo], y[todo])
        with torch.no_grad():
            for first in range(0, len(todo), _FORWARD):
                rows = todo[first : first + _FORWARD]
                points = x_adv[first : first + _FORWARD]
                kept[rows] = check_logits(model(points), y[rows]).argmax(1) == y[rows]
    return kept


def _points(batch: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise TypeError(f"the loader gives a {type(batch).__name__}; legal: batches (x, y).")
    x, y = batch
    if not (isinstance(x, Tensor) and x.is_floating_point() and len(x)):
        shown = (
            f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        )
        raise ValueError(f"inputs are {shown}; legal: floats, at least one point.")
    return x, y


def _named(attacks: Sequence[Attack], threat: ThreatModel | None) -> dict[str, Attack]:
    named: dict[str, Attack] = {}
    if callable(attacks):
        raise TypeError(f"attacks is {attacks!r}; give a list of attacks.")
    for attack in attacks:
        own = getattr(attack, "threat", threat)
        plain = getattr(attack, "__name__", type(attack).__name__)
        name = str(getattr(attack, "name", plain))
        if own is None:
            raise ValueError(f"{name} says no threat model; give evaluate(..., threat=...).")
        if name in named or name in ("clean", "worst case"):
            raise ValueError(f"two rows would be called {name!r}; give one attack another name.")
        named[name] = guarded(attack, own)
    return named
