"""What is made anew at a change of phase, on optimizers and callbacks of the libraries."""

import lightning_modules
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning_modules import DENSITY, network
from torch import nn
from torch.utils.data import DataLoader

from robust_plugin import HarpPruner, HydraPruner
from robust_plugin.adapters.lightning.phase_change import (
    forget_best,
    keep_trained,
    steps_per_epoch,
)

SGD = torch.optim.SGD


def names(model, optimizer):
    name_of = {p: name for name, p in model.named_parameters()}
    return [[name_of[p] for p in group["params"]] for group in optimizer.param_groups]


def masks(*kinds):
    """The names of scores and rates, scores first."""
    return [f"{i}.pruner_masks.0.group.{kind}" for kind in kinds for i in (0, 3, 6)]


def test_one_group_gets_scores_and_rates_before_the_norms_and_no_decay():
    model = network()
    groups = HarpPruner(model, DENSITY).set_phase("prune")
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    keep_trained([optimizer], model, groups, prune=True)
    assert names(model, optimizer) == [[*masks("scores", "rate"), "1.weight", "1.bias"]]
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("by_name", [False, True])
def test_groups_stay_and_scores_go_where_the_weights_were(by_name):
    """Weights with decay, all else without; by name, the second group misses scores and rates."""
    model = network()
    groups = HarpPruner(model, DENSITY).set_phase("prune")
    every = dict(model.named_parameters())
    if by_name:
        every = {name: p for name, p in every.items() if name.endswith(("weight", "bias"))}
    optimizer = SGD(
        [
            {"params": [p for p in every.values() if p.dim() <= 1], "weight_decay": 1e-3},
            {"params": [p for p in every.values() if p.dim() > 1], "lr": 0.3},
        ],
        lr=0.1,
        weight_decay=5e-4,
    )
    keep_trained([optimizer], model, groups, prune=True)
    assert names(model, optimizer) == [["1.weight", "1.bias"], masks("scores", "rate")]
    options = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert options == [(0.1, 1e-3), (0.3, 0.0)]


def test_parameters_outside_of_the_network_stay_where_they_are():
    whole = nn.ModuleDict({"net": network(), "head": nn.Linear(4, 4)})
    groups = HydraPruner(whole["net"], DENSITY).set_phase("prune")
    first, second = SGD(whole["net"].parameters(), lr=0.1), SGD(whole["head"].parameters(), lr=0.2)
    keep_trained([first, second], whole["net"], groups, prune=True)
    scores = [f"net.{name}" for name in masks("scores")]
    assert names(whole, first) == [[*scores, "net.1.weight", "net.1.bias"]]
    assert names(whole, second) == [["head.weight", "head.bias"]]


def test_fine_tuning_drops_scores_alone_and_keeps_the_decay():
    model = network()
    pruner = HydraPruner(model, DENSITY)
    pruner.set_phase("prune")
    pruner.update_masks()
    groups = pruner.set_phase("finetune")
    chosen = [p for name, p in model.named_parameters() if not name.startswith("0.weight")]
    optimizer = SGD(chosen, lr=0.1, weight_decay=5e-4)
    keep_trained([optimizer], model, groups, prune=False)
    dense = [name for name, _ in network().named_parameters()]
    assert names(model, optimizer) == [[name for name in dense if name != "0.weight"]]
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 6), (4, 2), (6, 1), (7, 1)])
def test_steps_per_epoch(accumulated, steps):
    trainer = lightning_modules.trainer(max_epochs=1, accumulate_grad_batches=accumulated)
    module = lightning_modules.Net()
    trainer.fit(module, DataLoader(lightning_modules.task(), 16))
    assert steps_per_epoch(trainer) == steps == trainer.global_step


def test_changing_accumulation_has_no_number_of_steps():
    trainer = lightning_modules.trainer(GradientAccumulationScheduler({0: 2}), max_epochs=1)
    trainer.fit(lightning_modules.Net(), DataLoader(lightning_modules.task(), 16))
    with pytest.raises(ValueError, match="accumulation changes; give PruningCallback"):
        steps_per_epoch(trainer)


@pytest.mark.parametrize(("mode", "before", "after"), [("min", 0.1, 0.5), ("max", 0.9, 0.5)])
def test_the_best_begins_anew(tmp_path, mode, before, after):
    """A worse value after it counts as the best."""
    stop = EarlyStopping("loss", mode=mode, patience=1)
    best = ModelCheckpoint(dirpath=tmp_path, monitor="loss", mode=mode)
    latest = ModelCheckpoint(dirpath=tmp_path)
    trainer = lightning_modules.trainer(stop, best, latest, enable_checkpointing=True)
    trainer.strategy.connect(lightning_modules.Net())
    for value in (before, after):
        forget_best(trainer)
        assert stop._evaluate_stopping_criteria(torch.tensor(value))[0] is False
        assert stop.best_score == value and stop.wait_count == 0
        assert best.check_monitor_top_k(trainer, torch.tensor(value))
        best._save_monitor_checkpoint(
            trainer,
            {"loss": torch.tensor(value), "epoch": torch.tensor(0), "step": torch.tensor(0)},
        )
        assert best.best_model_score == value
    trainer.should_stop, latest.best_model_path = True, "latest"
    forget_best(trainer)
    assert not trainer.should_stop and latest.best_model_path == "latest"
