"""A pruner in a training loop: masks, budgets and copies of the network, in one process or two.

The runs of ten learned steps are compared with a plain loop. Where a feature leaves the arithmetic
alone the comparison is in float32; where it reorders sums (memory layouts, two processes) it is in
float64: scores are float32 whatever the model's dtype, so that the last bits of the sums do not
reach them. Either way the masks are equal, not close.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import two_ranks
from forked import Forked
from learned_steps import (
    STEPS,
    THREAT,
    Trace,
    assert_same,
    attach_learned,
    batch_of,
    due,
    follow,
    learn,
    network,
    sgd,
    sizes,
    step_by,
)
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import robust_plugin.masks.group_mask
from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, Pruner, evaluate, pgd, sparsity
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.masked_layer import is_masked

# A few steps do not take the rates to their target, and the pruner warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")
LEARNED = pytest.mark.parametrize("kind", ["hydra", "held"])


def test_top_k_runs_once_a_layer_in_a_step_with_an_attack(cnn, batch, threat, monkeypatch):
    calls, forwards = [], []
    original = robust_plugin.masks.group_mask.topk_mask
    monkeypatch.setattr(
        robust_plugin.masks.group_mask,
        "topk_mask",
        lambda scores, count: calls.append(count) or original(scores, count),
    )
    x, y = batch
    for pruner in (HydraPruner(cnn(), 0.1), HarpPruner(cnn(), 0.1)):
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
        forwards.clear(), calls.clear()
        pruner.model.register_forward_hook(lambda *_: forwards.append(1))
        for step in range(1, 4):
            x_adv = pgd(threat, steps=10)(pruner.model, x, y)
            optimizer.zero_grad()
            F.cross_entropy(pruner.model(x_adv), y).backward()
            optimizer.step()
            assert len(calls) == 3 * step and len(forwards) == 11 * step
        pruner.set_phase("finetune")
        calls.clear()
        optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.1)
        calls.clear()
        F.cross_entropy(pruner.model(x), y).backward()
        optimizer.step()
        assert not calls


def test_scores_written_by_hand_need_update_masks(cnn):
    pruner = HydraPruner(cnn(), 0.1)
    with torch.no_grad():
        pruner.masks[0].scores.copy_(torch.arange(72.0).view(8, 1, 3, 3))
    pruner.update_masks()
    count = int(pruner.masks[0].kept)
    assert pruner.masks[0].mask.flatten().tolist() == [i >= 72 - count for i in range(72)]


def test_scores_that_diverge_say_so(cnn, batch):
    pruner = HydraPruner(cnn(), 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    F.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
    pruner.masks[1].scores.grad.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores hold NaN; lower the learning rate"):
        optimizer.step()


@pytest.mark.parametrize("pattern", ["1:2", "9:10", "1:3", "5:6", "3:16", "7:7"])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_the_count_of_a_pattern_is_exact(pattern, budget):
    n, m = map(int, pattern.split(":"))
    model = nn.Sequential(nn.Linear(3 * m, 11), nn.Linear(11, m), nn.Linear(m, 5))
    x = torch.rand(1, 3 * m)
    pruner = MagnitudePruner(model, pattern=pattern, budget=budget, example_inputs=x)
    counts = [33 * n, 5 * n] if 11 % m else [33 * n, m * 11 * n // m, 5 * n]
    assert [int(mask.mask.sum()) for mask in pruner.masks] == counts
    assert [int(mask.kept) for mask in pruner.masks] == counts
    assert pruner.kept == pruner.budget.total == sum(counts)
    pruner.finalize()


@pytest.mark.parametrize("kind", ["held", "hinge"])
@pytest.mark.parametrize("density", [0.1, 0.05, 0.01])
def test_learned_rates_reach_the_target_by_their_own_training(attach, kind, density):
    """The sum that the rates themselves ask for, before anything is rounded, within 1 %."""
    x = torch.rand(256, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10)
    )
    pruner = attach(kind, model, density)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer, epochs=20, steps_per_epoch=10)
    for _ in range(200):
        some = torch.randint(256, (32,))
        optimizer.zero_grad()
        (F.cross_entropy(model(x[some]), y[some]) + pruner.budget_penalty()).backward()
        optimizer.step()
    wanted = sum(float(m.density().detach()) * m.scores.numel() for m in pruner.masks)
    assert wanted == pytest.approx(density * 17024, rel=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.set_phase("finetune")
    assert pruner.kept == pruner.budget.total


def test_penalty_is_zero_but_for_the_hinge(cnn, attach, train):
    for kind in ("magnitude", "hydra", "held", "hinge"):
        pruner = attach(kind, cnn(), 0.05)
        if kind != "magnitude":
            with pytest.raises(ValueError, match="call set_phase\\('prune'\\) first"):
                pruner.budget_penalty()
            pruner.set_phase("prune")
            assert (float(pruner.budget_penalty().detach()) > 0) == (kind == "hinge")
            train(pruner, "prune", steps=1)
            pruner.set_phase("finetune")
        assert float(pruner.budget_penalty()) == 0


def test_same_seed_same_masks(cnn, attach, train):
    runs = []
    for _ in range(2):
        pruner = attach("hinge", cnn(), 0.05)
        train(pruner, "prune")
        runs.append(torch.cat([m.mask.flatten() for m in pruner.masks]))
    assert torch.equal(*runs)


def test_an_average_is_evaluated_with_the_masks_of_now(cnn, batch, train):
    model = cnn()
    pruner = HydraPruner(model, 0.2)
    average = torch.optim.swa_utils.AveragedModel(model)
    train(pruner, "prune", lr=3.0)
    masks = [mask.mask.clone() for mask in pruner.masks]
    carried = [m.mask for m in average.modules() if isinstance(m, GroupMask)]
    assert any(not torch.equal(a, b) for a, b in zip(masks, carried, strict=True))
    pruner.lend_masks(average)
    assert all(torch.equal(a, b) for a, b in zip(masks, carried, strict=True))
    average.eval()
    before = average(batch[0])
    pruner.finalize(average)
    assert torch.equal(average(batch[0]), before)
    assert not any(is_masked(layer) for layer in average.modules())


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
            model(batch_of(99)[0])
        model.train()
        for mine, before in zip(model.parameters(), saved, strict=True):
            mine.data.copy_(before)

    trace = learn(kind, between=average)
    assert_same(trace, learn(kind))
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

    trace = learn("held", between=follow_along)
    ema = averages[0].module
    trace.pruner.finalize(ema)
    weights = [p for p in ema.parameters() if p.dim() >= 2]
    for weight, mask in zip(weights, trace.masks[-1], strict=True):
        assert torch.equal(weight != 0, mask)
    network().load_state_dict(ema.state_dict(), strict=True)


@LEARNED
def test_evaluation_in_inference_mode_between_steps(kind: str) -> None:
    x, y = batch_of(99)

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

    assert_same(learn(kind, between=look), learn(kind))


@LEARNED
@pytest.mark.parametrize("when", ["before attaching", "after attaching"])
def test_channels_last(kind: str, when: str) -> None:
    last = torch.channels_last

    def run(model: nn.Module, **options: Any) -> Trace:
        # torch draws noise in the order of memory: a random start would depend on the layout.
        return learn(kind, model=model, dtype=torch.float64, start="clean", **options)

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
    trace = learn(kind, autocast=True)
    assert min(trace.flips) > 0
    assert all(mask.scores.dtype == torch.float32 for mask in trace.pruner.masks)
    assert all(mask.scores.isfinite().all() for mask in trace.pruner.masks)


@LEARNED
def test_a_model_in_bfloat16_keeps_exact_scores(kind: str) -> None:
    model = network()
    pruner = attach_learned(kind, model)
    before = [p.detach().clone() for mask in pruner.masks for p in mask.parameters()]
    model.to(torch.bfloat16)
    after = [p for mask in pruner.masks for p in mask.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    trace = Trace(kind, pruner)
    for step in range(STEPS):
        x, y = batch_of(step, dtype=torch.bfloat16)
        step_by(F.cross_entropy(model(x), y), optimizer)
        trace.see(step + 1)
    assert min(trace.flips) > 0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        Forked(two_ranks.two_processes, rank, folder, env={"GLOO_SOCKET_IFNAME": "lo"})
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_have_the_batchnorm_statistics_of_all_batches(
    ranks: list[dict[str, Any]],
) -> None:
    single = two_ranks.shared_statistics(0, 1)
    assert len(single) >= 2
    for rank in ranks:
        for theirs, ours in zip(rank["statistics"], single, strict=True):
            torch.testing.assert_close(theirs, ours)


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
    single = two_ranks.shared_run(kind, 0, 1, "pgd")
    assert min(single.flips) > 0
    for ours, theirs in zip(ranks[0][f"{kind} pgd"], single.masks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@LEARNED
def test_two_processes_finetune_to_the_same_network(ranks: list[dict[str, Any]], kind: str) -> None:
    first, second = (rank[f"{kind} trained"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    kept = sum(int(p.count_nonzero()) for p in first if p.dim() >= 2)
    assert kept == due(kind, sizes(network()), STEPS)


def test_two_processes_shrink_and_learn_as_one_on_the_double_batch(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["shrinking"] for rank in ranks)
    single = two_ranks.shared_shrinking(0, 1)
    assert list(single) == ["shrink", "prune", "finetune"]
    for phase, masks in single.items():
        for ours, theirs, alone in zip(first[phase], second[phase], masks, strict=True):
            for a, b, c in zip(ours, theirs, alone, strict=True):
                assert torch.equal(a, b) and torch.equal(a, c)
    kept = [[sum(int(m.sum()) for m in step) for step in masks] for masks in single.values()]
    n = sum(sizes(network()))
    assert n > kept[0][0] > kept[0][-1] > kept[1][-1] == kept[2][-1]


def test_a_wrapper_of_before_the_shrink_phase_is_caught(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "anew after each pruner.set_phase" in rank["shrunk too early"]


def test_attacks_run_on_the_network_inside_the_wrapper(ranks: list[dict[str, Any]]) -> None:
    assert [rank["calls"] for rank in ranks] == [(0, 1), (0, 1)]


def test_wrapping_before_the_phase_is_caught_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "wrap the model in DistributedDataParallel anew" in rank["too early"]


def test_a_wrapper_kept_into_the_next_phase_is_caught_on_every_rank(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert "anew after each pruner.set_phase" in rank["kept"]


def test_sharded_networks_are_refused_in_either_order(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert all("masks are chosen over whole weights" in said for said in rank["sharded"])


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_a_layer_that_was_replaced_is_named(cnn, attach, kind):
    model = cnn()
    pruner = attach(kind, model, 0.1)
    model[6] = nn.Linear(128, 3)
    for end in (lambda: pruner.set_phase("finetune"), pruner.finalize):
        pruner.progress.updated = True
        with pytest.raises(ValueError, match="the layer '6' that the pruner masks is no part of"):
            end()


def test_a_compiled_layer_is_finalized_like_the_others(cnn, batch):
    model, plain = cnn(), cnn()
    model[6] = torch.compile(model[6], backend="eager")
    for one in (model, plain):
        pruner = MagnitudePruner(one, 0.1)
        pruner.finalize()
    assert sparsity(model).kept == sparsity(plain).kept
    assert torch.equal(model.eval()(batch[0]), plain.eval()(batch[0]))


def test_lists_of_parameters_by_name_are_those_of_the_plain_network(cnn, attach):
    def decayed(model: nn.Module) -> list[str]:
        return [n for n, p in model.named_parameters() if n.endswith("weight") and p.dim() > 1]

    plain = decayed(cnn())
    for kind in ("magnitude", "hydra", "held"):
        model = cnn()
        pruner = attach(kind, model, 0.1)
        assert decayed(model) == plain
        if pruner.learn:
            pruner.set_phase("prune")
            pruner.update_masks()
        pruner.set_phase("finetune")
        assert decayed(model) == plain


def test_masks_above_the_budget_are_not_finalized(cnn, attach):
    model = cnn()
    pruner = attach("magnitude", model, 0.1)
    pruner.masks[0].choose(pruner.masks[0].kept + 5)
    with pytest.raises(ValueError, match="the masks keep a cost of 170, and the budget is 165"):
        pruner.finalize()
    assert is_masked(model[0]) and pruner.phase == "attached"
