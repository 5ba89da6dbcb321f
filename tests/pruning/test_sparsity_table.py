import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from robust_plugin import MagnitudePruner, sparsity


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.hidden = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.hidden(self.embed(x) + self.token)).mean(1))


@pytest.mark.parametrize("finalized", [False, True])
def test_counts_and_table_by_hand(finalized):
    model, x = Net(), torch.randint(11, (1, 5))
    pruner = MagnitudePruner(model, density=0.25)
    if finalized:
        pruner.finalize()
    found = sparsity(model, x)
    assert [(s.name, s.shape, s.size, s.kept, s.multiply_adds) for s in found.layers] == [
        ("hidden.weight", (6, 8), 48, 12, 5),
        ("head.weight", (3, 6), 18, 5, 1),
    ]
    assert (found.size, found.kept, found.density) == (66, 17, 17 / 66)
    assert found.parameters == 88 + 8 + 48 + 6 + 12 + 18 + 3
    assert set(found.uncovered) == {("embed.weight", 88), ("token", 8)}
    text = str(found)
    assert "prunable weights 66 (36.1% of 183 parameters), kept 17: 25.76% of the prunable" in text
    assert f"{(17 + 183 - 66) / 183:.2%} of all" in text
    assert f"{(12 * 5 + 5) / (48 * 5 + 18):.2%} of their multiply-adds" in text
    assert "token (8)" in text and "embed.weight (88)" in text
    assert "6x8" in text and "12/48" in text and "25.00%" in text


def test_without_inputs_no_multiply_adds():
    found = sparsity(nn.Sequential(nn.Linear(4, 2)))
    assert found.layers[0].multiply_adds == 0 and found.density == 1.0 and not found.uncovered
    assert "multiply-adds" not in str(found)


def test_a_tied_weight_is_stored_once_and_works_twice():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    for pruned in (False, True):
        if pruned:
            MagnitudePruner(model, density=0.5)
        found = sparsity(model, torch.randn(1, 6))
        assert found.size == 36 + 12
        assert found.kept == (24 if pruned else 48)
        assert found.parameters == 36 + 12 + 6 + 6 + 2
        total = sum(layer.size * layer.multiply_adds for layer in found.layers)
        assert total == 36 * 2 + 12


def test_a_model_that_torch_prunes():
    model = nn.Sequential(nn.Linear(6, 6))
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert (sparsity(model).kept, sparsity(model).size) == (18, 36)


def test_model_without_prunable_layer():
    with pytest.raises(ValueError, match="Sequential has no prunable layer"):
        sparsity(nn.Sequential(nn.ReLU()))


def test_a_layer_that_does_not_run_has_no_multiply_adds():
    class WithIdleHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.used(x)

    table = sparsity(WithIdleHead(), torch.rand(1, 4))
    assert {layer.name: layer.multiply_adds for layer in table.layers} == {
        "used.weight": 1,
        "idle.weight": 0,
    }
    assert "idle.weight" in str(table)
