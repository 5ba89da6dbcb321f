"""Sparse Linear and Conv2d layers against the dense layers of the same weights."""

import pytest
import torch
from sparse_networks import pruned
from torch import nn
from torch.nn import functional as F

from robust_plugin.export import csr_layers
from robust_plugin.export.csr_layers import SparseConv2d, SparseLinear


@pytest.mark.parametrize("shape", [(20,), (1, 20), (64, 20), (3, 5, 20), (0, 20)])
@pytest.mark.parametrize("kept", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_linear_layer_equals_the_dense_one(shape, kept, bias):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        layer = pruned(nn.Linear(20, 6, bias=bias, dtype=dtype), kept)
        x = torch.randn(shape, dtype=dtype)
        found = SparseLinear.of(layer)(x)
        torch.testing.assert_close(found, layer(x), rtol=0, atol=tolerance)
        assert found.is_contiguous()


GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 4, "bias": False},
    {"kernel_size": 3, "groups": 8, "padding": "same"},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_sparse_convolution_equals_the_dense_one(geometry, monkeypatch):
    layer = pruned(nn.Conv2d(8, 16, **geometry), 0.2)
    candidate = SparseConv2d.of(layer)
    inputs = {
        "batch": torch.randn(3, 8, 9, 7),
        "one": torch.randn(1, 8, 9, 7),
        "none": torch.randn(0, 8, 9, 7),
        "no batch": torch.randn(8, 9, 7),
        "channels last": torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last),
        "a view": torch.randn(2, 10, 7, 9).transpose(2, 3)[:, 1:9],
        "expanded": torch.randn(1, 8, 9, 1).expand(2, 8, 9, 7),
    }
    for name, x in inputs.items():
        before, found = x.clone(), candidate(x)
        torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5, msg=name)
        assert found.is_contiguous() and torch.equal(x, before)
    monkeypatch.setattr(csr_layers, "_CACHE", 2 * candidate.unfolded_bytes(x))
    x = torch.randn(5, 8, 9, 7)  # two examples, two, and one
    torch.testing.assert_close(candidate(x), layer(x), rtol=0, atol=1e-5)
    unfolded = F.unfold(
        F.pad(inputs["one"], candidate.pads),
        layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
    )
    assert candidate.unfolded_bytes(inputs["batch"]) == 4 * unfolded.numel()
    assert candidate.unfolded_bytes(inputs["no batch"]) == 4 * unfolded.numel()
    assert torch.equal(candidate.dense_layer().weight, layer.weight)
    with pytest.raises(RuntimeError):
        candidate(torch.randn(2, 16, 9, 7))  # never a view of other memory


def test_a_map_smaller_than_the_kernel_is_refused():
    candidate = SparseConv2d.of(pruned(nn.Conv2d(8, 16, 4)))
    with pytest.raises(RuntimeError):
        candidate(torch.randn(2, 8, 2, 9))


def test_training_is_refused():
    layer = SparseLinear.of(pruned(nn.Linear(8, 4))).train()
    with pytest.raises(ValueError, match="SparseLinear is for inference; call model.eval"):
        layer(torch.rand(2, 8))
