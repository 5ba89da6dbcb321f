"""Several processes of one command, as torchrun starts them, on one machine or on many.

Each computes its share of every batch, and only the first writes; the run's folder has to be one
that all of them see.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from robust_plugin.runtime.distributed import rank_and_world

# While the first process evaluates or certifies, the others wait; the default is ten minutes.
_PATIENCE = timedelta(days=2)


@contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun started; yield whether this one speaks and writes.

    Alone, nothing is joined. Each process takes the GPU of its number, where there are GPUs; what
    is shared of tensors on the CPU goes by gloo, of those on GPUs by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        with warnings.catch_warnings():
            if not is_first():
                warnings.simplefilter("ignore")  # the first one says the same
            yield is_first()
        # gloo's threads free the tensors of the last exchange after it has returned. Where that
        # falls into the end of Python it aborts the process; nothing is left to free after this.
        wait_for_all()
    finally:
        distributed.destroy_process_group()


def is_first() -> bool:
    """Return whether this process speaks and writes."""
    return rank_and_world()[0] == 0


def wait_for_all() -> None:
    """Wait until all processes are here, e.g. until the first has written what all read."""
    if rank_and_world()[1] > 1:
        distributed.barrier()


def summed(values: Sequence[float]) -> list[float]:
    """Return the sums of each value over the processes, the same on all of them."""
    if rank_and_world()[1] == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)  # on the CPU: gloo is there in any case
    distributed.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their BatchNorm statistics.

    Each process normalises by its own share of a batch. Attacks run in evaluation mode, where the
    running statistics count: they are to meet the same network everywhere.
    """
    if rank_and_world()[1] == 1:
        return
    kept: list[Tensor] = [
        statistic
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if not kept:
        return
    flat = torch.cat([statistic.flatten() for statistic in kept])
    distributed.all_reduce(flat)
    flat /= rank_and_world()[1]
    means = torch.split(flat, [statistic.numel() for statistic in kept])
    with torch.no_grad():
        for statistic, mean in zip(kept, means, strict=True):
            statistic.copy_(mean.view_as(statistic))


def device_of(name: str) -> torch.device:
    """Return the device of a name; ``auto`` takes cuda where there is one.

    Raises:
        ValueError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    here += ["mps"] * torch.backends.mps.is_available()
    try:
        device = torch.empty(0, device=name).device
    # torch raises many kinds, of which some speak of its own operators and backends.
    except Exception as error:
        raise ValueError(
            f"device is {name!r}, which this machine does not have; legal here: {', '.join(here)}."
        ) from error
    if device.type == "meta":
        raise ValueError(
            f"device is {name!r}, whose tensors hold no values; legal here: {', '.join(here)}."
        )
    return device
