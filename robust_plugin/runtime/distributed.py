"""Several processes: the network inside DDP, ranks, and a check for equal parameters."""

from __future__ import annotations

import torch
from torch import distributed, nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP or DataParallel; attacks run on this network.

    A forward pass of DDP may wait for the other processes. An attack may need a different number of
    forward passes on each process, so that with DDP one process could wait forever.

    Args:
        model: network; one that is not wrapped is returned itself.
    """
    kinds = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, kinds) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the network inside all wrappers of DDP, DataParallel and torch.compile.

    Certified bounds are computed layer by layer, and need the network's own layers.

    Args:
        model: network, in any number of wrappers; one without a wrapper is returned itself.
    """
    model = unwrapped(model)
    inner = getattr(model, "_orig_mod", model)
    return model if inner is model else innermost(inner)


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, (0, 1) for a single process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def check_ranks(model: nn.Module) -> None:
    """Raise a ValueError if the trained parameters differ between distributed processes.

    They differ when a model is wrapped in DDP before ``set_phase`` of the pruner has chosen which
    parameters are trained: DDP averages only the gradients of parameters that were trained when it
    was made.

    Args:
        model: network, wrapped or not; all parameters that require a gradient are compared.

    Raises:
        ValueError: if a parameter's sum, or sum of magnitudes, differs between processes.
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
            "the trained parameters differ between processes after the first step of the phase; "
            "wrap the model in DistributedDataParallel anew after each pruner.set_phase, because "
            "DDP averages only the gradients of what was trained when it was made."
        )
