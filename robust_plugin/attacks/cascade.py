"""Attacks one after another on the points that still stand: resumable, and shared by processes.

Each attack goes over fixed batches of points and begins each with the same seed, so that the
verdicts are a function of model, points, attacks, seed and batch size, and of nothing else: not of
how many processes worked, nor of how often they were interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.journal import Journal
from robust_plugin.runtime.random import forked


@dataclass(frozen=True)
class Progress:
    """Where a cascade stands, in this process.

    Attributes:
        attack: the one that runs.
        done: batches finished, over all attacks.
        of: batches in all.
        left: points that stand.
    """

    attack: str
    done: int
    of: int
    left: int


def cascade(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    seed: int,
    batch_size: int,
    journal: Journal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Tensor:
    """Return the first adversarial input found for each point, clean where none was.

    Args:
        model: has the last word on what is adversarial; in evaluation mode.
        x: shape [n, ...].
        y: shape [n].
        attacks: by name, in their order; each sees the points that withstood those before it.
        seed: each attack begins each batch with it, as AutoAttack's authors do.
        batch_size: points in a batch.
        journal: finished batches; what is in it is not computed again.
        progress: called after each batch.
    """
    rank, world = rank_and_world()
    x_adv, robust = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    batches = [
        slice(first, first + batch_size)
        for first in range(rank * batch_size, len(x), world * batch_size)
    ]
    for number, name in enumerate(attacks):
        for index, batch in enumerate(batches):
            unit = f"{name}-{batch.start // batch_size:05d}"
            rows = batch.start + robust[batch].nonzero().flatten()
            found = journal.get(unit) if journal is not None else None
            if found is None:
                with forked(seed, x.device):
                    found = _fooled(model, x[rows], y[rows], attacks[name])
                if journal is not None:
                    journal.put(unit, found)
            fooled = rows[found["rows"].to(rows.device)]
            x_adv[fooled] = found["x_adv"].to(x_adv)
            robust[fooled] = False
            if progress is not None:
                left = sum(int(robust[each].sum()) for each in batches)
                done = number * len(batches) + index + 1
                progress(Progress(name, done, len(attacks) * len(batches), left))
    return _gathered(x_adv, batches) if world > 1 else x_adv


def _fooled(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> dict[str, Tensor]:
    """Return which rows an attack fools, and by what."""
    if len(x) == 0:
        return {"rows": torch.empty(0, dtype=torch.long), "x_adv": x}
    x_adv = attack(model, x, y).detach()
    with torch.no_grad():
        rows = (model(x_adv).argmax(1) != y).nonzero().flatten()
    return {"rows": rows, "x_adv": x_adv[rows]}


def _gathered(x_adv: Tensor, batches: list[slice]) -> Tensor:
    """All processes' batches, on all of them."""
    shared = torch.zeros_like(x_adv)
    for batch in batches:
        shared[batch] = x_adv[batch]
    distributed.all_reduce(shared)
    return shared
