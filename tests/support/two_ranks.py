"""Learned steps in two processes, as torchrun starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from learned_steps import (
    STEPS,
    THREAT,
    Trace,
    attach_learned,
    batch_of,
    follow,
    network,
    sgd,
    step_by,
)
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from robust_plugin import GradualPruner, MagnitudePruner, pgd, recompute_statistics, trades


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def shared_run(kind: str, rank: int, ranks: int, objective: str) -> Trace:
    """PGD or TRADES on one half of every batch, or on all of it."""
    model = network(batch_norm=objective == "trades", dtype=torch.float64)
    pruner = attach_learned(kind, model)
    optimizer = sgd(pruner.set_phase("prune"))
    outer = ddp(model) if ranks > 1 else model
    follow(pruner, optimizer)
    attack, robust = pgd(THREAT, steps=2, start="clean"), trades(THREAT, steps=2)
    trace = Trace(kind, pruner)
    torch.manual_seed(7 + rank)
    for step in range(STEPS):
        x, y = (t.chunk(ranks)[rank] for t in batch_of(step, 16, torch.float64))
        if objective == "trades":
            loss = robust(outer, x, y)
        else:
            loss = F.cross_entropy(outer(attack(outer, x, y)), y)
        step_by(loss, optimizer)
        trace.see(step + 1)
    return trace


def finetune(trace: Trace, rank: int, ranks: int) -> None:
    """Three steps of TRADES, two forward passes each, after the masks are fixed."""
    pruner = trace.pruner
    optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.01)
    outer = ddp(pruner.model)
    for step in range(3):
        x, y = (t.chunk(ranks)[rank] for t in batch_of(step, 16, torch.float64))
        step_by(trades(THREAT, steps=2)(outer, x, y), optimizer)
    assert all(
        torch.equal(mask.mask, old) for mask, old in zip(pruner.masks, trace.masks[-1], strict=True)
    )


def shared_shrinking(rank: int, ranks: int) -> dict[str, list[list[torch.Tensor]]]:
    """The masks after each step of all phases of gradual pruning; a half of each batch a rank."""
    model = network(batch_norm=False, dtype=torch.float64)
    pruner = GradualPruner(model, density=0.05, learn=("scores", "rates"))
    masks: dict[str, list[list[torch.Tensor]]] = {}
    for phase in pruner.order:
        optimizer = sgd(pruner.set_phase(phase))
        for group in optimizer.param_groups:
            group["lr"] = 1.0 if phase == "prune" else 0.05
        outer = ddp(model) if ranks > 1 else model
        if phase != "finetune":
            pruner.follow(optimizer, epochs=2, steps_per_epoch=3)
        masks[phase] = []
        for step in range(6):
            x, y = (t.chunk(ranks)[rank] for t in batch_of(step, 16, torch.float64))
            step_by(F.cross_entropy(outer(x), y), optimizer)
            masks[phase].append([mask.mask.clone() for mask in pruner.masks])
    return masks


def shrunk_too_early(rank: int) -> str:
    """A wrapper from before the shrink phase, when scores were all that was frozen."""
    model = network(batch_norm=False)
    model.requires_grad_(False)
    model[0].weight.requires_grad_(True)
    outer = ddp(model)
    model.requires_grad_(True)
    pruner = MagnitudePruner(model, density=0.05, schedule="cubic")
    optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=4)
    x, y = (t.chunk(2)[rank] for t in batch_of(0, 16))
    try:
        step_by(F.cross_entropy(outer(x), y), optimizer)
    except ValueError as error:
        return str(error)
    return "no error"


def wrapped_too_early(rank: int) -> str:
    model = network(batch_norm=False)
    pruner = attach_learned("hydra", model)
    outer = ddp(model)
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    x, y = (t.chunk(2)[rank] for t in batch_of(0, 16))
    try:
        step_by(F.cross_entropy(outer(x), y), optimizer)
    except ValueError as error:
        return str(error)
    return "no error"


def wrapper_kept(rank: int) -> str:
    """The wrapper of the prune phase, kept in the next one as Lightning's error message advises."""
    model = network(batch_norm=False)
    pruner = attach_learned("hydra", model)
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    outer = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    x, y = (t.chunk(2)[rank] for t in batch_of(0, 16))
    step_by(F.cross_entropy(outer(x), y), optimizer)
    optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.1)
    try:
        step_by(F.cross_entropy(outer(x), y), optimizer)
    except ValueError as error:
        return str(error)
    return "no error"


def sharded(rank: int) -> list[str]:
    """A network that is sharded (FSDP2) before, and after, the pruner is attached."""
    said = []
    for early in (True, False):
        model = network(batch_norm=False)
        try:
            if early:
                fully_shard(model)
            pruner = attach_learned("hydra", model)
            optimizer = sgd(pruner.set_phase("prune"))
            follow(pruner, optimizer)
            if not early:
                fully_shard(model)
            x, y = batch_of(rank)
            F.cross_entropy(model(x), y).backward()
            said.append("no error")
        except ValueError as error:
            said.append(str(error))
    return said


def forwards_of_the_wrapper(rank: int) -> tuple[int, int]:
    """How often an attack and a training step call the wrapper, whose calls meet other ranks."""
    model = network()
    pruner = attach_learned("hydra", model)
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    outer, calls = ddp(model), []
    outer.register_forward_hook(lambda *_: calls.append(1))
    x, y = batch_of(rank)
    # With restarts, a rank whose points are all misclassified stops early.
    x = pgd(THREAT, steps=2, restarts=1 + rank, keep="best")(outer, x, y)
    attacked = len(calls)
    step_by(F.cross_entropy(outer(x), y), optimizer)
    return attacked, len(calls)


def shared_statistics(rank: int, ranks: int) -> list[torch.Tensor]:
    """BatchNorm's statistics of three batches, of which rank 0 has two."""
    model = network(dtype=torch.float64)
    mine = [batch_of(step, 8 + 4 * step, torch.float64) for step in range(3)]
    if ranks > 1:
        mine = [batch for step, batch in enumerate(mine) if step % ranks == rank]
    recompute_statistics(ddp(model) if ranks > 1 else model, mine)
    return [buffer for name, buffer in model.named_buffers() if "running" in name]


def two_processes(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    results: dict[str, Any] = {}
    for kind in ("hydra", "held"):
        results[f"{kind} pgd"] = shared_run(kind, rank, 2, "pgd").masks
        trace = shared_run(kind, rank, 2, "trades")
        results[f"{kind} trades"] = trace.masks
        finetune(trace, rank, 2)
        trace.pruner.finalize()
        results[f"{kind} trained"] = [p.detach() for p in trace.pruner.model.parameters()]
    results["statistics"] = shared_statistics(rank, 2)
    results["shrinking"] = shared_shrinking(rank, 2)
    results["shrunk too early"] = shrunk_too_early(rank)
    results["calls"] = forwards_of_the_wrapper(rank)
    results["too early"] = wrapped_too_early(rank)
    results["kept"] = wrapper_kept(rank)
    results["sharded"] = sharded(rank)
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
