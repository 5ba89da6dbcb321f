"""The contract of an attack, and the guard around every one of them.

An attack is any callable ``attack(model, x, y) -> x_adv``. It may come from anywhere; run inside
``guarded`` it leaves the model as it was and stays in its threat model, or raises.
"""

from __future__ import annotations

import torch
from torch import distributed, nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP or DataParallel, which attacks run on.

    A forward pass of the wrapper talks to the other processes, and attacks need not make equally
    many on each.
    """
    kinds = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, kinds) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the network inside DDP, DataParallel and torch.compile, which bounds are of."""
    model = unwrapped(model)
    inner = getattr(model, "_orig_mod", model)
    return model if inner is model else innermost(inner)


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def check_ranks(model: nn.Module) -> None:
    """Raise if the trained parameters differ between distributed processes.

    That is what wrapping in DDP before set_phase leads to, silently: DDP averages the
    gradients of those parameters only that were trained when it was made.

    Raises:
        ValueError: if a checksum differs.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() == 1:
        return
    trained = [p.detach().double() for p in model.parameters() if p.requires_grad]
    checksum = torch.stack([torch.stack([p.sum(), p.abs().sum()]) for p in trained])
    gathered = [torch.empty_like(checksum) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, checksum)
    if any(not torch.equal(other, gathered[0]) for other in gathered):
        raise ValueError(
            "scores, rates or norms differ between processes after the first step; wrap the "
            "model in DistributedDataParallel after pruner.set_phase, not before."
        )
