"""``cascade``: run attacks one after another, each on the points that are not fooled yet.

With a journal, an interrupted computation can be resumed, and several processes can share the work.
Each attack goes over fixed batches of points and begins each batch with the same seed. The results
therefore depend on model, points, attacks, seed and batch size alone, and not on the number of
processes or of interruptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, distributed, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.journal import Journal, each_unit
from robust_plugin.runtime.progress import ProgressOption, reporting
from robust_plugin.runtime.random import forked


def cascade(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    seed: int,
    batch_size: int,
    journal: Journal | None = None,
    progress: ProgressOption = False,
    title: str = "attacks",
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
        progress: False, True for a progress bar, or a function that takes a ``Progress``. Each
            attack is a task of its own, whose total is the number of points of this process that no
            earlier attack has fooled; an attack without such points is no task.
        title: what the attacks are together, for ``progress``.
    """
    rank, world = rank_and_world()
    x_adv, robust = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    batches = [
        slice(first, first + batch_size)
        for first in range(rank * batch_size, len(x), world * batch_size)
    ]

    def robust_rows(batch: slice) -> Tensor:
        rows: Tensor = batch.start + robust[batch].nonzero().flatten()
        return rows

    def compute(attack: Attack, batch: slice) -> dict[str, Tensor]:
        rows = robust_rows(batch)
        with forked(seed, x.device):
            return _fooled(model, x[rows], y[rows], attack)

    for name, attack in attacks.items():
        units = {f"{name}-{batch.start // batch_size:05d}": batch for batch in batches}
        left, done = sum(int(robust[batch].sum()) for batch in batches), 0
        told = progress if left else False
        with reporting(told, f"{title}: {name}", total=left, unit="points") as show:
            for batch, found in each_unit(units, partial(compute, attack), journal):
                rows = robust_rows(batch)
                fooled = rows[found["rows"].to(x.device)]
                x_adv[fooled] = found["x_adv"].to(x_adv)
                robust[fooled] = False
                done += len(rows)
                show(done)
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
