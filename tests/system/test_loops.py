"""Training loops that other people wrote take the pruner in four lines.

``tests/loops`` holds each loop twice: as it was, and with the pruner.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from robust_plugin import finalize, sparsity
from robust_plugin.masks.select import kept_count

LOOPS = Path(__file__).parent / "loops"
DENSITY = 0.1


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loops_{name}", LOOPS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def examples() -> tuple[Tensor, Tensor]:
    """Ten prototypes with noise: separable, and small enough to learn in seconds."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(512) % 10
    prototypes = torch.rand(10, 1, 8, 8, generator=generator)
    noise = 0.15 * torch.randn(512, 1, 8, 8, generator=generator)
    return (prototypes[labels] + noise).clamp(0, 1), labels


def budget(model: nn.Module) -> int:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return sum(kept_count(layer.weight.numel(), DENSITY) for layer in layers)


def accuracy(model: nn.Module) -> float:
    x, y = examples()
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def changed_lines(before: str, after: str) -> int:
    """Lines that differ, added, removed or changed; the blank ones do not count."""
    old, new = ([line for line in text.splitlines() if line.strip()] for text in (before, after))
    return sum(
        max(i2 - i1, j2 - j1)
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, False).get_opcodes()
        if tag != "equal"
    )


@pytest.mark.parametrize("loop", ["amp_ema", "closure"])
def test_the_pruner_costs_four_lines(loop: str) -> None:
    before, after = ((LOOPS / f"{loop}_{when}.py").read_text() for when in ("before", "after"))
    assert 1 <= changed_lines(before, after) <= 4
    assert "robust_plugin" in after and "robust_plugin" not in before


def test_changed_lines_counts_each_kind_of_change() -> None:
    assert changed_lines("a\nb\nc", "a\nb\nc\n\n") == 0
    assert changed_lines("a\nb\nc", "a\nx\nc") == 1
    assert changed_lines("a\nb\nc", "a\nx\ny\nc\nz") == 3
    assert changed_lines("a\nb\nc", "c") == 2


def test_amp_ema_accumulation_and_schedule() -> None:
    data = TensorDataset(*examples())
    torch.manual_seed(0)
    model, ema, dense_history = load("amp_ema_before").train(network(), data)
    assert dense_history[-1] < 0.5 * dense_history[0]
    dense_weights = [p.detach().clone() for p in model.parameters() if p.dim() >= 2]

    model, ema, history = load("amp_ema_after").train(model, data)
    # Ninety per cent of the weights gone at once, the loss starts high and recovers.
    assert history[0] > 2 * dense_history[-1]
    assert history[-1] < 0.5 * history[0]
    total = budget(network())
    assert sparsity(model).kept == sparsity(ema).kept == total
    # Learned rates: some layer keeps another share than the rest.
    shares = {layer.name: layer.kept / layer.size for layer in sparsity(model).layers}
    assert max(shares.values()) > 1.2 * min(shares.values())

    for trained in (model, ema):
        finalize(trained)
        fresh = network()
        fresh.load_state_dict(trained.state_dict(), strict=True)
        weights = [p for p in fresh.parameters() if p.dim() >= 2]
        assert sum(int(w.count_nonzero()) for w in weights) == total
        # The prune phase left the weights alone: what is not zero is what was there.
        for weight, dense in zip(weights, dense_weights, strict=True):
            kept = weight != 0
            assert torch.equal(weight[kept], dense[kept])
        assert accuracy(fresh) > 0.8


def test_closures_through_prune_and_finetune() -> None:
    x, y = examples()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    torch.manual_seed(0)
    before = load("closure_before").Trainer(model := network())
    losses = before.fit(batches, epochs=3)
    assert losses[-1] < 0.5 * losses[0]

    trainer = load("closure_after").Trainer(model)
    losses = trainer.fit(batches, epochs=3)
    assert losses[-1] < 0.8 * losses[0]
    total = budget(network())
    assert trainer.pruner.kept == total
    masks = [mask.mask.clone() for mask in trainer.pruner.masks]

    # The same trainer, with the optimizer of the next phase.
    trainer.optimizer = torch.optim.Adam(trainer.pruner.set_phase("finetune"), lr=0.003)
    trainer.losses = []
    finetuned = trainer.fit(batches, epochs=3)
    assert finetuned[-1] < losses[-1]
    assert all(m.mask.equal(old) for m, old in zip(trainer.pruner.masks, masks, strict=True))
    trainer.pruner.finalize()
    fresh = network()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert sum(int(p.count_nonzero()) for p in fresh.parameters() if p.dim() >= 2) == total
    assert accuracy(fresh) > 0.9
