"""``cascade``: run attacks one after another, each on the points that are not fooled yet.

With a journal, an interrupted computation can be resumed, and several processes can share the work.
Each attack goes over fixed batches of points and begins each batch with the same seed. The results
therefore depend on model, points, attacks, seed and batch size alone, and not on the number of
processes or of interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.journal import Journal, each_unit
from robust_plugin.runtime.random import forked


@dataclass(frozen=True)
class CascadeProgress:
    """How far ``cascade`` is in this process.

    Attributes:
        attack: name of the attack that has just finished a batch.
        done: number of batches that this process has finished; a batch counts once per attack.
        total: number of all batches of this process; a batch counts once per attack.
        left: number of points of this process that are not fooled yet.
    """

    attack: str
    done: int
    total: int
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
    progress: Callable[[CascadeProgress], None] | None = None,
) -> Tensor:
    """Return the first adversarial input found for each point, or its clean input if none is found.

    The result has the shape of ``x``. With several processes, each attacks its share of the
    batches, and all return the results of all points.

    Args:
        model: network in evaluation mode; a point counts as fooled if this network misclassifies
            the input that an attack returns for it.
        x: clean inputs, shape [n, ...].
        y: labels, shape [n].
        attacks: attacks by name, in their order; each gets the points that no earlier one fooled.
        seed: seed of the global generators at the start of each batch of each attack, as in the
            code of AutoAttack's authors.
        batch_size: number of points per batch.
        journal: journal that stores the results of finished batches, so that they are not computed
            again; None for no journal.
        progress: function called after each batch of each attack.
    """
    rank, world = rank_and_world()
    x_adv, robust = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    batches = [
        slice(first, first + batch_size)
        for first in range(rank * batch_size, len(x), world * batch_size)
    ]
    units = {
        f"{name}-{batch.start // batch_size:05d}": (name, batch)
        for name in attacks
        for batch in batches
    }

    def robust_rows(batch: slice) -> Tensor:
        rows: Tensor = batch.start + robust[batch].nonzero().flatten()
        return rows

    def compute(unit: tuple[str, slice]) -> dict[str, Tensor]:
        name, rows = unit[0], robust_rows(unit[1])
        with forked(seed, x.device):
            return _fooled(model, x[rows], y[rows], attacks[name])

    for done, ((name, batch), found) in enumerate(each_unit(units, compute, journal), 1):
        fooled = robust_rows(batch)[found["rows"].to(x.device)]
        x_adv[fooled] = found["x_adv"].to(x_adv)
        robust[fooled] = False
        if progress is not None:
            left = sum(int(robust[each].sum()) for each in batches)
            progress(CascadeProgress(name, done, len(units), left))
    return _gathered(x_adv, batches) if world > 1 else x_adv


def _fooled(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> dict[str, Tensor]:
    """Run an attack on all points of ``x``, with labels ``y``, and return what fools the model.

    Returns:
        dict: under "rows" the indices into ``x`` of the fooled points, shape [F], and under "x_adv"
        their adversarial inputs, shape [F, ...].
    """
    if len(x) == 0:
        return {"rows": torch.empty(0, dtype=torch.long), "x_adv": x}
    x_adv = attack(model, x, y).detach()
    with torch.no_grad():
        rows = (model(x_adv).argmax(1) != y).nonzero().flatten()
    return {"rows": rows, "x_adv": x_adv[rows]}


def _gathered(x_adv: Tensor, batches: list[slice]) -> Tensor:
    """Return the results of all points, shape [n, ...], collected from all processes.

    Args:
        x_adv: results, shape [n, ...], which are complete only in the batches of this process.
        batches: the batches of this process, as slices of the n points.
    """
    shared = torch.zeros_like(x_adv)
    for batch in batches:
        shared[batch] = x_adv[batch]
    distributed.all_reduce(shared)
    return shared
