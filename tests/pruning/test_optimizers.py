"""Ten learned steps under each optimizer of torch and timm.

After every step the budget is met exactly, and the masks are the largest scores. A stable sort of
the scores is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from learned_steps import DENSITY, STEPS, Trace, attach_learned, batch_of, follow, sizes, step_by
from torch import nn
from torch.nn import functional as F

from robust_plugin import HydraPruner

Groups = list[dict[str, Any]]
Make = Callable[[Groups], Any]

# Learning rates at which ten steps move the masks of this small network.
OF_TORCH: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.5, "momentum": 0.9},
    "SGD nesterov": {"lr": 0.5, "momentum": 0.9, "nesterov": True},
    "SGD fused": {"lr": 0.5, "momentum": 0.9, "fused": True},
    "Adam": {"lr": 0.02},
    "Adam amsgrad": {"lr": 0.02, "amsgrad": True},
    "AdamW": {"lr": 0.02},
    "Adamax": {"lr": 0.02},
    "NAdam": {"lr": 0.02},
    "RAdam": {"lr": 0.1},
    "RMSprop": {"lr": 0.01},
    "Rprop": {"lr": 0.02},
    "Adagrad": {"lr": 0.02},
    "Adadelta": {"lr": 5.0},
    "ASGD": {"lr": 0.5},
    "Adafactor": {"lr": 0.05},
}
OF_TIMM: dict[str, dict[str, Any]] = {
    "adabelief": {"lr": 0.02},
    "adafactorbv": {"lr": 0.05},
    "adamp": {"lr": 0.02},
    "adan": {"lr": 0.02},
    "adopt": {"lr": 0.02},
    "cadamw": {"lr": 0.02},
    "lamb": {"lr": 0.1},
    "laprop": {"lr": 0.02},
    "lars": {"lr": 5.0},
    "lion": {"lr": 0.02},
    "lookahead_adam": {"lr": 0.05},
    "lookahead_sgd": {"lr": 1.0},
    "madgrad": {"lr": 0.1},
    "mars": {"lr": 0.02},
    "nadamw": {"lr": 0.02},
    "novograd": {"lr": 0.1},
    "rmsproptf": {"lr": 0.01},
    "sgdp": {"lr": 0.5},
    "sgdw": {"lr": 0.5},
}


def of_torch(name: str) -> Make:
    kind, settings = getattr(torch.optim, name.split(maxsplit=1)[0], None), OF_TORCH[name]
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    return lambda groups: kind(groups, **settings)


def of_timm(name: str) -> Make:
    return lambda groups: timm.optim.create_optimizer_v2(groups, opt=name, **OF_TIMM[name])


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    )


def make_step(model: nn.Module, optimizer: Any, step: int) -> None:
    every = optimizer if isinstance(optimizer, list) else [optimizer]
    x, y = batch_of(step)
    loss = F.cross_entropy(model(x), y)
    for each in every:
        each.zero_grad()
    loss.backward()
    for each in every:
        each.step()


def whole_job(kind: str, make: Make) -> None:
    """Ten learned steps, each checked by the trace, then three steps with fixed masks."""
    model, due = small(), sum(max(1, n - int((1 - DENSITY) * n)) for n in sizes(small()))
    pruner = attach_learned(kind, model)
    optimizer = make(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    trace = Trace(kind, pruner)
    trace.see(0)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    before = [p.detach().clone() for p in frozen]
    for step in range(STEPS):
        make_step(model, optimizer, step)
        trace.see(step + 1)
    assert pruner.steps.step == STEPS
    assert pruner.kept == pruner.budget.total == due
    assert sum(trace.flips) > 0
    assert all(torch.equal(p, old) for p, old in zip(frozen, before, strict=True))

    optimizer = make(pruner.set_phase("finetune"))
    for step in range(3):
        make_step(model, optimizer, step)
    model.eval()
    with torch.no_grad():
        masked = model(batch_of(0)[0])
        pruner.finalize()
        assert torch.equal(model(batch_of(0)[0]), masked)
    weights = [p for p in model.parameters() if p.dim() >= 2]
    zeros = zip(weights, trace.masks[-1], strict=True)
    assert all(torch.equal(w != 0, mask) for w, mask in zeros)


@pytest.mark.parametrize("kind", ["hydra", "held"])
@pytest.mark.parametrize("name", OF_TORCH)
def test_optimizers_of_torch(name: str, kind: str) -> None:
    whole_job(kind, of_torch(name))


@pytest.mark.parametrize("kind", ["hydra", "held"])
@pytest.mark.parametrize("name", OF_TIMM)
def test_optimizers_of_timm(name: str, kind: str) -> None:
    whole_job(kind, of_timm(name))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("kind", ["hydra", "held"])
def test_muon_for_matrices_beside_adamw(kind: str) -> None:
    def make(groups: Groups) -> list[torch.optim.Optimizer]:
        every = [p for group in groups for p in group["params"]]
        matrices = [p for p in every if p.ndim == 2]
        others = [p for p in every if p.ndim != 2]
        return [
            torch.optim.Muon(matrices, lr=0.02),
            torch.optim.AdamW(others, lr=0.02, weight_decay=0.0),
        ]

    whole_job(kind, make)


def test_lbfgs_is_refused() -> None:
    pruner = HydraPruner(small(), density=DENSITY)
    parameters = [p for group in pruner.set_phase("prune") for p in group["params"]]
    with pytest.raises(ValueError, match="LBFGS cannot be followed: within one step"):
        pruner.follow(torch.optim.LBFGS(parameters))


def test_sparse_adam_refuses_dense_gradients_itself() -> None:
    pruner = HydraPruner(model := small(), density=DENSITY)
    parameters = [p for group in pruner.set_phase("prune") for p in group["params"]]
    optimizer = torch.optim.SparseAdam(parameters)
    pruner.follow(optimizer)
    masks = [mask.mask.clone() for mask in pruner.masks]
    x, y = batch_of(0)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        step_by(F.cross_entropy(model(x), y), optimizer)
    assert pruner.steps.step == 0
    assert all(torch.equal(m.mask, old) for m, old in zip(pruner.masks, masks, strict=True))
