"""Gain of sparse export on this machine: for a layer, for networks, and in file size.

One thread. Dense and sparse take turns in one run, and the ratios of medians are compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from robust_plugin import MagnitudePruner
from robust_plugin.export.compressed import save_compressed
from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_layers import SparseLinear
from robust_plugin.runtime.timing import alternating

pytest.importorskip("torchvision")
from torchvision.models import resnet18  # noqa: E402

AT_LEAST = 5.0  # speed-up of a Linear layer with 99 % of its weights pruned


@pytest.mark.bench
def test_linear_layers() -> None:
    torch.manual_seed(0)
    lines = [f"{'Linear, one thread':<22}{'batch':>6}{'pruned':>8}{'dense ms':>10}{'CSR ms':>9}"]
    ratios = {}
    for size in (2048, 4096):
        for pruned in (0.99, 0.9, 0.5):
            layer = nn.Linear(size, size).requires_grad_(False)
            MagnitudePruner(layer, 1 - pruned).finalize()
            layer.requires_grad_(False)
            candidate = SparseLinear.of(layer)
            for batch in (1, 64):
                x = torch.rand(batch, size)
                torch.testing.assert_close(candidate(x), layer(x), rtol=1e-4, atol=1e-5)
                dense, csr = alternating(
                    lambda layer=layer, x=x: layer(x),
                    lambda layer=candidate, x=x: layer(x),
                    seconds=0.5,
                )
                ratios[size, pruned, batch] = dense / csr
                lines.append(
                    f"{f'{size} x {size}':<22}{batch:>6}{pruned:>8.0%}{1e3 * dense:>10.3f}"
                    f"{1e3 * csr:>9.3f}{dense / csr:>8.1f}x"
                )
    print("\n" + "\n".join(lines))
    assert min(ratio for (_, pruned, _), ratio in ratios.items() if pruned == 0.99) >= AT_LEAST


@pytest.mark.bench
def test_no_network_is_slower() -> None:
    """Time ResNet-18 on 32 x 32 and a multilayer perceptron again after ``sparse`` timed them."""
    torch.manual_seed(0)
    networks = {
        "ResNet-18": (lambda: resnet18(num_classes=10), (3, 32, 32)),
        "MLP 784-1024-1024-10": (
            lambda: nn.Sequential(
                nn.Flatten(),
                nn.Linear(784, 1024),
                nn.ReLU(),
                nn.Linear(1024, 1024),
                nn.ReLU(),
                nn.Linear(1024, 10),
            ),
            (1, 28, 28),
        ),
    }
    lines = [f"{'network, one thread':<22}{'batch':>6}{'pruned':>8}{'in CSR':>9}{'speed':>8}"]
    for name, (build, shape) in networks.items():
        for pruned in (0.99, 0.9, 0.5):
            model = build()
            MagnitudePruner(model, 1 - pruned, rates="erk").finalize()
            model.eval().requires_grad_(False)
            for batch in (1, 64):
                x = torch.rand(batch, *shape)
                exported, report = sparse(model, x)
                dense, found = alternating(
                    lambda model=model, x=x: model(x),
                    lambda model=exported, x=x: model(x),
                    seconds=1.0,
                )
                chosen = f"{len(report.chosen)}/{len(report.layers)}"
                lines.append(f"{name:<22}{batch:>6}{pruned:>8.0%}{chosen:>9}{dense / found:>7.2f}x")
                # Even two equal networks differ by a few per cent on a busy machine.
                assert found <= 1.1 * dense, lines
    print("\n" + "\n".join(lines))


@pytest.mark.bench
def test_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lines = []
    for pruned in (0.99, 0.95, 0.9, 0.5):
        model = resnet18(num_classes=10)
        MagnitudePruner(model, 1 - pruned).finalize()
        written = save_compressed(tmp_path / f"{pruned:.0%}", model)
        lines.append(f"ResNet-18, pruned {written}")
        assert written.size < written.dense_size
    print("\n" + "\n".join(lines))
