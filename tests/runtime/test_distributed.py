"""The network inside wrappers, and parameters that have to be equal on all processes."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from robust_plugin.runtime.distributed import check_ranks, innermost, rank_and_world, unwrapped


def test_the_network_inside_its_wrappers() -> None:
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)  # compiles at its first call, which does not come
    assert unwrapped(model) is model and innermost(model) is model
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(compiled) is compiled and innermost(compiled) is model
    assert innermost(nn.DataParallel(compiled)) is model  # type: ignore[arg-type]


def test_one_process_alone() -> None:
    assert rank_and_world() == (0, 1)
    check_ranks(nn.Linear(2, 2))


def worker(rank: int, store: str, said: Any) -> None:
    """One of two processes: train the second layer alone, then change it on one process."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert rank_and_world() == (rank, 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    check_ranks(model)
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight += rank  # not trained, so that it may differ
    check_ranks(model)
    with torch.no_grad():
        model[1].weight[0, 0] += rank
    try:
        check_ranks(model)
    except ValueError as error:
        said.put(str(error))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_trained_parameters_that_differ_between_processes_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    processes = [
        context.Process(target=worker, args=(rank, str(tmp_path / "store"), said))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    for _ in processes:
        assert "differ between processes after the first step" in said.get()
