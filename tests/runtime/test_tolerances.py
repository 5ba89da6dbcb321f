"""Tolerances: wider than rounding, narrower than a change, and each in use."""

import ast
from pathlib import Path

import torch
from torch import nn

from robust_plugin.runtime import tolerances

ROOT = Path(__file__).parents[2]
NAMES = [name for name in vars(tolerances) if name.isupper()]


def networks() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A network, the same one with its hidden units in another order, and inputs."""
    torch.manual_seed(0)
    first, second = nn.Linear(256, 512), nn.Linear(512, 10)
    order = torch.randperm(512)
    other = nn.Linear(256, 512), nn.Linear(512, 10)
    with torch.no_grad():
        other[0].weight.copy_(first.weight[order]), other[0].bias.copy_(first.bias[order])
        other[1].weight.copy_(second.weight[:, order]), other[1].bias.copy_(second.bias)
    x = torch.rand(64, 256)
    return nn.Sequential(first, nn.ReLU(), second), nn.Sequential(other[0], nn.ReLU(), other[1]), x


def test_another_order_of_sums_is_within_and_another_weight_is_beyond() -> None:
    model, same, x = networks()
    with torch.no_grad():
        expected = model(x)
        largest = expected.abs().max()
        apart = float((same(x) - expected).abs().max() / largest)
        same[2].weight.mul_(1.01)
        changed = float((same(x) - expected).abs().max() / largest)
    epsilon = torch.finfo(torch.float32).eps
    limits = [
        tolerances.FOLDED_OUTPUTS,
        tolerances.SPARSE_OUTPUTS,
        tolerances.ONNX_OUTPUTS,
        tolerances.JOURNAL_LOGITS,
        tolerances.REPEATED_LOGITS,
        epsilon**tolerances.REMOVED_CHANNELS_POWER,
        epsilon**tolerances.MAGNIFIED_CHANNELS_POWER,
    ]
    assert 0 < apart < min(limits) and max(limits) < changed


def test_every_tolerance_is_imported_where_it_is_needed() -> None:
    used = set()
    for folder in ("robust_plugin", "adapters", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                if (module or "").endswith("runtime.tolerances"):
                    used |= {alias.name for alias in node.names}
    assert used == set(NAMES) and len(NAMES) > 5
