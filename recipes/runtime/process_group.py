"""The process group of a command that torchrun starts, on one machine or on several.

Each process computes its part of every batch. Only the first process (rank 0) writes files and
prints. All processes read from the run's folder, so it must be on a file system that they share.
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

# The other processes wait while the first one evaluates or certifies. torch's default timeout of
# ten minutes is too short for that.
_TIMEOUT = timedelta(days=2)


@contextmanager
def processes() -> Iterator[bool]:
    """Return a context manager in which this process belongs to the process group of torchrun.

    It yields True in the process that prints and writes files, otherwise False. A process that
    torchrun did not start, or started alone, gets True and joins no group. With GPUs, each process
    uses the GPU of its local rank. Tensors on the CPU are exchanged by gloo and tensors on GPUs by
    NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        with warnings.catch_warnings():
            if not is_first():
                warnings.simplefilter("ignore")  # the first process shows the same warnings
            yield is_first()
        # gloo's threads free the tensors of an exchange after the exchange has returned. If Python
        # exits at that moment, the process aborts. After this barrier nothing is left to free.
        wait_for_all()
    finally:
        distributed.destroy_process_group()


def is_first() -> bool:
    """Return whether this process is the first one (rank 0), which prints and writes files."""
    return rank_and_world()[0] == 0


def wait_for_all() -> None:
    """Wait until all processes have called this function.

    For example, all of them wait before they read a file that the first process writes.
    """
    if rank_and_world()[1] > 1:
        distributed.barrier()


def summed(values: Sequence[float]) -> list[float]:
    """Return the sum of each value over all processes; every process gets the same sums.

    Args:
        values: the values of this process; each process gives the same number of values.
    """
    if rank_and_world()[1] == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)  # on the CPU: gloo is always available
    distributed.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def average_statistics(model: nn.Module) -> None:
    """Set the running statistics of BatchNorm to their mean over all processes.

    In training mode each process normalises by the points of its own part of a batch, so running
    statistics differ between processes. Attacks run in evaluation mode, which uses the running
    statistics. After this call every process attacks the same network.

    Args:
        model: network whose running statistics are changed in place.
    """
    if rank_and_world()[1] == 1:
        return
    statistics: list[Tensor] = [
        statistic
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if not statistics:
        return
    flat = torch.cat([statistic.flatten() for statistic in statistics])
    distributed.all_reduce(flat)
    flat /= rank_and_world()[1]
    means = torch.split(flat, [statistic.numel() for statistic in statistics])
    with torch.no_grad():
        for statistic, mean in zip(statistics, means, strict=True):
            statistic.copy_(mean.view_as(statistic))


def device_of(name: str) -> torch.device:
    """Return the torch device that a name stands for.

    Args:
        name: name of a device for torch, such as cpu or cuda:1; auto is cuda if this machine has
            a GPU, else cpu.

    Raises:
        ValueError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    here += ["mps"] * torch.backends.mps.is_available()
    try:
        device = torch.empty(0, device=name).device
    # torch raises many types of errors here; some messages are about its operators and backends.
    except Exception as error:
        raise ValueError(
            f"device is {name!r}, which this machine does not have; legal here: {', '.join(here)}."
        ) from error
    if device.type == "meta":
        raise ValueError(
            f"device is {name!r}, whose tensors hold no values; legal here: {', '.join(here)}."
        )
    return device
