"""Several processes: the network inside a wrapper, ranks, and equal parameters on all ranks."""

from __future__ import annotations

import torch
from torch import distributed, nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP or DataParallel; attacks run on this network.

    A forward pass of the wrapper communicates with the other processes, and attacks may need
    another number of forward passes on each process.

    Args:
        model: network, wrapped or not.
    """
    kinds = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, kinds) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the network inside DDP, DataParallel and torch.compile; bounds read its layers.

    Args:
        model: network, in any number of wrappers or none.
    """
    model = unwrapped(model)
    inner = getattr(model, "_orig_mod", model)
    return model if inner is model else innermost(inner)


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) for a single one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def check_ranks(model: nn.Module) -> None:
    """Raise a ValueError if the trained parameters differ between distributed processes.

    This happens when a model is wrapped in DDP before set_phase: DDP averages only the gradients of
    parameters that were trained when the wrapper was made.

    Args:
        model: network, wrapped or not; all parameters that require a gradient are compared.

    Raises:
        ValueError: if the sums of a parameter differ between processes.
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
