"""Learned masks under everything else a training loop may do to a model.

Ten learned steps each, against a plain loop. Where a feature leaves the arithmetic alone the
comparison is in float32; where it reorders sums (fused kernels, memory layouts, two processes) it
is in float64: scores are float32 whatever the model's dtype, so that the last bits of the sums do
not reach them. Either way the masks are equal, not close.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_plugin import (
    HarpPruner,
    HydraPruner,
    Pruner,
    ThreatModel,
    evaluate,
    pgd,
    sparsity,
    trades,
)
from robust_plugin.masks.attach import GroupMask

STEPS = 10
DENSITY = 0.05
LR = 1.0
THREAT = ThreatModel("Linf", eps=0.1)
LEARNED = pytest.mark.parametrize("kind", ["hydra", "held"])
Start = Literal["uniform", "clean"]
Update = Callable[[int, Tensor, torch.optim.Optimizer], None]


def network(*, batch_norm: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)

    def norm() -> nn.Module:
        # Statistics that keep pace with ten steps: attacks run on them.
        return nn.BatchNorm2d(16, momentum=0.5) if batch_norm else nn.GroupNorm(4, 16)

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        norm(),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=4),
        norm(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return model.to(dtype)


def sizes(model: nn.Module) -> list[int]:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [layer.weight.numel() for layer in layers]


def batch(step: int, points: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.rand(points, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(10, (points,), generator=generator)


def attach(kind: str, model: nn.Module) -> Pruner:
    return (HydraPruner if kind == "hydra" else HarpPruner)(model, density=DENSITY)


def follow(pruner: Pruner, optimizer: torch.optim.Optimizer) -> None:
    pruner.follow(optimizer, epochs=2, steps_per_epoch=STEPS // 2)


def due(kind: str, n: list[int], steps: int) -> int:
    """How many weights are to be kept after so many optimizer steps."""
    target = sum(max(1, size - int((1 - DENSITY) * size)) for size in n)
    if kind == "hydra" or steps >= 0.6 * STEPS:
        return target
    # The rates start at 10 %, to the precision of their float32 logits.
    k_min = 0.1 * DENSITY
    odds = (0.1 - k_min) / (1 - 0.1)
    logit = float(torch.tensor(math.log(odds), dtype=torch.float32))
    start = k_min + (1 - k_min) / (1 + math.exp(-logit))
    share = start * (DENSITY / start) ** (steps / STEPS / 0.6)
    return max(target, math.floor(share * sum(n)))


@dataclass
class Trace:
    """The masks after every step, each checked against a sort of the scores as they are then."""

    kind: str
    pruner: Pruner
    masks: list[list[Tensor]] = field(default_factory=list)

    def see(self, steps: int) -> None:
        now = []
        for group in self.pruner.masks:
            order = group.scores.detach().abs().flatten().argsort(descending=True, stable=True)
            expected = torch.zeros(order.numel(), dtype=torch.bool)
            expected[order[: int(group.kept)]] = True
            assert torch.equal(group.mask.flatten(), expected)
            assert not group.mask.is_inference()
            now.append(group.mask.clone())
        n = [group.size for group in self.pruner.groups]
        assert sum(int(mask.sum()) for mask in now) == due(self.kind, n, steps)
        self.masks.append(now)

    @property
    def flips(self) -> list[int]:
        """How many entries of all masks each step changed."""
        return [
            sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
            for old, new in zip(self.masks, self.masks[1:], strict=False)
        ]


def assert_same(trace: Trace, plain: Trace) -> None:
    assert len(trace.masks) == len(plain.masks)
    for ours, theirs in zip(trace.masks, plain.masks, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def sgd(groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=LR, momentum=0.9, weight_decay=5e-4, fused=fused)


def adam(groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.02, fused=fused)


def step_by(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(
    kind: str,
    *,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = sgd,
    dtype: torch.dtype = torch.float32,
    model: nn.Module | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    layout: torch.memory_format = torch.contiguous_format,
    update: Update | None = None,
    between: Callable[[Pruner, int], None] = lambda pruner, step: None,
    autocast: bool = False,
    skipped: int | None = None,
    start: Start = "uniform",
) -> Trace:
    """Ten steps of PGD training; ``skipped`` is a step at which the optimizer does not move."""
    model = network(dtype=dtype) if model is None else model
    pruner = attach(kind, model)
    outer = wrap(model)
    chosen = optimizer(pruner.set_phase("prune"))
    follow(pruner, chosen)
    attack, trace, done = pgd(THREAT, steps=2, start=start), Trace(kind, pruner), 0
    trace.see(done)
    torch.manual_seed(7)
    for step in range(STEPS):
        x, y = batch(step, dtype=dtype)
        x = x.contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(outer(attack(outer, x, y)), y) + pruner.budget_penalty()
        if update is not None:
            update(step, loss, chosen)
        elif step == skipped:
            loss.backward()
        else:
            step_by(loss, chosen)
        done += step != skipped
        trace.see(done)
        between(pruner, step)
    assert pruner.schedule.step == done
    return trace


@LEARNED
def test_the_plain_run_learns(kind: str) -> None:
    # What the others are compared with is no standstill.
    trace = train(kind)
    assert min(trace.flips) > 0
    assert sum(trace.flips) > 0.25 * trace.pruner.kept


def test_the_plain_run_follows_the_equations() -> None:
    """HYDRA without parametrizations, hooks or autograd through a mask."""
    trace = train("hydra")
    model = network()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}
    scores = {name: math.sqrt(6 / w[0].numel()) * w / w.abs().max() for name, w in weights.items()}
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    speed = {name: torch.zeros_like(s) for name, s in scores.items()}
    kept = {name: max(1, w.numel() - int(0.95 * w.numel())) for name, w in weights.items()}

    def masks() -> dict[str, Tensor]:
        found = {}
        for name, s in scores.items():
            order = s.abs().flatten().argsort(descending=True, stable=True)[: kept[name]]
            found[name] = torch.zeros(s.numel()).index_fill_(0, order, 1.0).view(s.shape)
        return found

    def put_masked() -> None:
        for name, mask in masks().items():
            model.get_parameter(name).data.copy_(weights[name] * mask)

    weights = {name: w.clone() for name, w in weights.items()}
    optimizer = torch.optim.SGD(norms, lr=LR, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(7)
    for step in range(STEPS):
        put_masked()
        x, y = batch(step)
        loss = F.cross_entropy(model(pgd(THREAT, steps=2)(model, x, y)), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        for name, s in scores.items():
            grad = model.get_parameter(name).grad
            # dL/ds = sign(s) w dL/dw_eff, then SGD with momentum and without weight decay.
            speed[name] = 0.9 * speed[name] + s.sign() * (weights[name] * grad)
            s -= LR * speed[name]
        for ours, theirs in zip(trace.masks[step + 1], masks().values(), strict=True):
            assert torch.equal(ours, theirs.bool())


@LEARNED
def test_compiled_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()

    def wrap(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="aot_eager", fullgraph=True)

    # The attack runs on the compiled model too.
    assert_same(train(kind, wrap=wrap), train(kind))


@LEARNED
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_fused_optimizers(kind: str, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    plain = train(kind, optimizer=optimizer, dtype=torch.float64)
    fused = train(kind, optimizer=lambda groups: optimizer(groups, fused=True), dtype=torch.float64)
    assert min(plain.flips) > 0
    assert_same(fused, plain)


@LEARNED
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips(kind: str, fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []

    def update(step: int, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        scaler.scale(loss * (math.inf if step == 4 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())

    trace = train(kind, optimizer=lambda groups: sgd(groups, fused), update=update, skipped=4)
    # Powers of two scale without rounding, so that even float32 is equal.
    assert scales == [1024.0] * 4 + [512.0] * 6
    assert trace.flips[4] == 0 and trace.flips[5] > 0
    plain = train(kind, optimizer=lambda groups: sgd(groups, fused), skipped=4)
    assert_same(trace, plain)


@LEARNED
def test_accumulation_over_four_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(by_hand: bool) -> tuple[Trace, int]:
        model = network()
        pruner = attach(kind, model)
        optimizer = sgd(pruner.set_phase("prune"))
        follow(pruner, optimizer)
        learned = [p for group in optimizer.param_groups for p in group["params"]]
        trace, calls = Trace(kind, pruner), 0
        trace.see(0)
        choose = GroupMask.choose

        def counted(self: GroupMask, kept: int | None = None) -> None:
            nonlocal calls
            calls += 1
            choose(self, kept)

        monkeypatch.setattr(GroupMask, "choose", counted)
        torch.manual_seed(7)
        for step in range(STEPS):
            sums: list[Tensor] | None = None
            optimizer.zero_grad()
            for micro in range(4):
                x, y = batch(4 * step + micro)
                x = pgd(THREAT, steps=2)(model, x, y)
                loss = (F.cross_entropy(model(x), y) + pruner.budget_penalty()) / 4
                if not by_hand:
                    loss.backward()
                    continue
                grads = torch.autograd.grad(loss, learned)
                sums = (
                    list(grads)
                    if sums is None
                    else [a + b for a, b in zip(sums, grads, strict=True)]
                )
            if sums is not None:
                for parameter, grad in zip(learned, sums, strict=True):
                    parameter.grad = grad
            optimizer.step()
            trace.see(step + 1)
        monkeypatch.undo()
        return trace, calls

    accumulated, calls = run(by_hand=False)
    assert calls == STEPS * len(accumulated.masks[0])
    assert min(accumulated.flips) > 0
    assert_same(accumulated, run(by_hand=True)[0])


def test_four_batches_accumulate_to_one_of_four_times_the_size() -> None:
    def run(micro: int) -> Trace:
        model = network(batch_norm=False, dtype=torch.float64)
        pruner = attach("held", model)
        optimizer = sgd(pruner.set_phase("prune"))
        follow(pruner, optimizer)
        trace = Trace("held", pruner)
        attack = pgd(THREAT, steps=2, start="clean")
        for step in range(STEPS):
            x, y = batch(step, 32, torch.float64)
            optimizer.zero_grad()
            for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
                (F.cross_entropy(model(attack(model, xs, ys)), ys) / micro).backward()
            optimizer.step()
            trace.see(step + 1)
        return trace

    assert_same(run(4), run(1))


@LEARNED
def test_an_average_written_through_data(kind: str) -> None:
    averages: list[nn.Module] = []

    def average(pruner: Pruner, step: int) -> None:
        model = pruner.model
        if not averages:
            averages.append(copy.deepcopy(model))
        ema = averages[0]
        for ours, theirs in zip(ema.parameters(), model.parameters(), strict=True):
            ours.data.mul_(0.8).add_(theirs.data, alpha=0.2)
        # Evaluate under the averaged parameters and put the trained ones back.
        saved = [p.data.clone() for p in model.parameters()]
        for mine, averaged in zip(model.parameters(), ema.parameters(), strict=True):
            mine.data.copy_(averaged.data)
        model.eval()
        with torch.no_grad():
            model(batch(99)[0])
        model.train()
        for mine, before in zip(model.parameters(), saved, strict=True):
            mine.data.copy_(before)

    trace = train(kind, between=average)
    assert_same(trace, train(kind))
    pruner, ema = trace.pruner, averages[0]
    # The copy was made after the first step: its own masks are that old, the pruner's are not.
    assert any(not torch.equal(a, b) for a, b in zip(trace.masks[1], trace.masks[-1], strict=True))
    names = [group.name for group in pruner.groups]
    pruner.finalize(ema)
    weights = dict(ema.named_parameters())
    assert sparsity(ema).kept == due(kind, sizes(network()), STEPS) == pruner.kept
    for name, mask in zip(names, trace.masks[-1], strict=True):
        assert torch.equal(weights[name] != 0, mask)
    network().load_state_dict(ema.state_dict(), strict=True)
    # The training goes on, untouched by the copy's end.
    assert pruner.phase == "prune" and sparsity(pruner.model).kept == pruner.kept


@pytest.mark.parametrize(
    "average",
    [
        partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        partial(ModelEmaV2, decay=0.9),
        partial(ModelEmaV3, decay=0.9),
    ],
    ids=["torch", "torch with buffers", "timm v2", "timm v3"],
)
def test_averages_of_libraries_finalize_with_the_masks_of_the_pruner(
    average: Callable[[nn.Module], Any],
) -> None:
    # Some copy the masks, some average them to their union, some leave those of the first step.
    averages: list[Any] = []

    def follow_along(pruner: Pruner, step: int) -> None:
        if not averages:
            averages.append(average(pruner.model))
        ema = averages[0]
        (ema.update_parameters if isinstance(ema, AveragedModel) else ema.update)(pruner.model)

    trace = train("held", between=follow_along)
    ema = averages[0].module
    trace.pruner.finalize(ema)
    weights = [p for p in ema.parameters() if p.dim() >= 2]
    for weight, mask in zip(weights, trace.masks[-1], strict=True):
        assert torch.equal(weight != 0, mask)
    network().load_state_dict(ema.state_dict(), strict=True)


@LEARNED
def test_scores_written_through_data(kind: str) -> None:
    slow: list[Tensor] = []

    def look_back(pruner: Pruner, step: int) -> None:
        # Lookahead: every third step the scores go back half of their way.
        if not slow:
            slow.extend(mask.scores.detach().clone() for mask in pruner.masks)
        if step % 3 == 2:
            for mask, old in zip(pruner.masks, slow, strict=True):
                mask.scores.data.lerp_(old, 0.5)
                old.copy_(mask.scores.data)

    # Each step's masks are checked against the scores that the step left.
    trace = train(kind, between=look_back)
    assert min(trace.flips) > 0


@LEARNED
def test_evaluation_in_inference_mode_between_steps(kind: str) -> None:
    x, y = batch(99)

    def look(pruner: Pruner, step: int) -> None:
        model = pruner.model
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            model.eval()
            clean = model(x)
            attacked = model(pgd(THREAT, steps=2)(model, x, y))
            report = evaluate(model, [(x, y)], attacks=[pgd(THREAT, steps=2)])
            model.train()
        assert clean.is_inference() and not torch.equal(clean, attacked)
        assert report.accuracy() == float((clean.argmax(1) == y).float().mean())
        assert all(not tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])

    assert_same(train(kind, between=look), train(kind))


@LEARNED
@pytest.mark.parametrize("when", ["before attaching", "after attaching"])
def test_channels_last(kind: str, when: str) -> None:
    last = torch.channels_last

    def run(model: nn.Module, **options: Any) -> Trace:
        # torch draws noise in the order of memory: a random start would depend on the layout.
        return train(kind, model=model, dtype=torch.float64, start="clean", **options)

    plain = run(network(dtype=torch.float64))
    model = network(dtype=torch.float64)
    if when == "before attaching":
        trace = run(model.to(memory_format=last), layout=last)
    else:
        trace = run(model, layout=last, wrap=lambda model: model.to(memory_format=last))
    effective = model[3].weight
    assert effective.is_contiguous(memory_format=last) and not effective.is_contiguous()
    assert_same(trace, plain)


@LEARNED
def test_bfloat16_autocast(kind: str) -> None:
    trace = train(kind, autocast=True)
    assert min(trace.flips) > 0
    assert all(mask.scores.dtype == torch.float32 for mask in trace.pruner.masks)
    assert all(mask.scores.isfinite().all() for mask in trace.pruner.masks)


@LEARNED
def test_a_model_in_bfloat16_keeps_exact_scores(kind: str) -> None:
    model = network()
    pruner = attach(kind, model)
    before = [p.detach().clone() for mask in pruner.masks for p in mask.parameters()]
    model.to(torch.bfloat16)
    after = [p for mask in pruner.masks for p in mask.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    trace = Trace(kind, pruner)
    for step in range(STEPS):
        x, y = batch(step, dtype=torch.bfloat16)
        step_by(F.cross_entropy(model(x), y), optimizer)
        trace.see(step + 1)
    assert min(trace.flips) > 0


# Two processes: this file runs itself, so that each is a process like those of torchrun.


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def shared_run(kind: str, rank: int, ranks: int, objective: str) -> Trace:
    """PGD or TRADES on one half of every batch, or on all of it."""
    model = network(batch_norm=objective == "trades", dtype=torch.float64)
    pruner = attach(kind, model)
    optimizer = sgd(pruner.set_phase("prune"))
    outer = ddp(model) if ranks > 1 else model
    follow(pruner, optimizer)
    attack, robust = pgd(THREAT, steps=2, start="clean"), trades(THREAT, steps=2)
    trace = Trace(kind, pruner)
    torch.manual_seed(7 + rank)
    for step in range(STEPS):
        x, y = (t.chunk(ranks)[rank] for t in batch(step, 16, torch.float64))
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
        x, y = (t.chunk(ranks)[rank] for t in batch(step, 16, torch.float64))
        step_by(trades(THREAT, steps=2)(outer, x, y), optimizer)
    assert all(
        torch.equal(mask.mask, old) for mask, old in zip(pruner.masks, trace.masks[-1], strict=True)
    )


def wrapped_too_early(rank: int) -> str:
    model = network(batch_norm=False)
    pruner = attach("hydra", model)
    outer = ddp(model)
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    x, y = (t.chunk(2)[rank] for t in batch(0, 16))
    try:
        step_by(F.cross_entropy(outer(x), y), optimizer)
    except ValueError as error:
        return str(error)
    return "no error"


def forwards_of_the_wrapper(rank: int) -> tuple[int, int]:
    """How often an attack and a training step call the wrapper, whose calls meet other ranks."""
    model = network()
    pruner = attach("hydra", model)
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    outer, calls = ddp(model), []
    outer.register_forward_hook(lambda *_: calls.append(1))
    x, y = batch(rank)
    # With restarts, a rank whose points are all misclassified stops early.
    x = pgd(THREAT, steps=2, restarts=1 + rank, keep="best")(outer, x, y)
    attacked = len(calls)
    step_by(F.cross_entropy(outer(x), y), optimizer)
    return attacked, len(calls)


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
    results["calls"] = forwards_of_the_wrapper(rank)
    results["too early"] = wrapped_too_early(rank)
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@LEARNED
@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_two_processes_have_the_same_masks(
    ranks: list[dict[str, Any]], kind: str, objective: str
) -> None:
    first, second = (rank[f"{kind} {objective}"] for rank in ranks)
    assert len(first) == STEPS
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@LEARNED
def test_two_processes_equal_one_on_the_double_batch(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    single = shared_run(kind, 0, 1, "pgd")
    assert min(single.flips) > 0
    for ours, theirs in zip(ranks[0][f"{kind} pgd"], single.masks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@LEARNED
def test_two_processes_finetune_to_the_same_network(ranks: list[dict[str, Any]], kind: str) -> None:
    first, second = (rank[f"{kind} trained"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    kept = sum(int(p.count_nonzero()) for p in first if p.dim() >= 2)
    assert kept == due(kind, sizes(network()), STEPS)


def test_attacks_run_on_the_network_inside_the_wrapper(ranks: list[dict[str, Any]]) -> None:
    assert [rank["calls"] for rank in ranks] == [(0, 1), (0, 1)]


def test_wrapping_before_the_phase_is_caught_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert (
            "wrap the model in DistributedDataParallel after pruner.set_phase" in rank["too early"]
        )


if __name__ == "__main__":
    two_processes(int(sys.argv[1]), Path(sys.argv[2]))
