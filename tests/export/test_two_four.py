"""2:4 layers for CUDA: which layers are converted, and what the copy computes."""

import pytest
import torch
from sparse_networks import network
from torch import nn

from robust_plugin import MagnitudePruner
from robust_plugin.export.replace_layers import dense_copy
from robust_plugin.export.two_four import obstacle, semi_structured


def two_four(rows=64, columns=128, dtype=torch.float16):
    layer = nn.Linear(columns, rows)
    MagnitudePruner(layer, pattern="2:4").finalize()
    return layer.to(dtype)


def test_what_can_be_compressed_for_cuda():
    assert obstacle(two_four()) is None
    assert obstacle(two_four(dtype=torch.bfloat16)) is None
    assert "float32; call model.half()" in obstacle(two_four(dtype=torch.float32))
    for rows, columns in ((48, 128), (64, 96)):
        found = obstacle(two_four(rows, columns))
        assert found == f"has {rows} x {columns} weights, no multiple of 32 x 64"
    spoiled = two_four()
    spoiled.weight.data[5, 4:7] = 1
    assert obstacle(spoiled) in (
        "keeps up to 3 of 4 weights",
        "keeps up to 4 of 4 weights",
    )
    denser = nn.Linear(128, 64)
    MagnitudePruner(denser, pattern="4:8").finalize()
    assert "of 4 weights" in obstacle(denser.half())
    sparser = nn.Linear(128, 64)
    MagnitudePruner(sparser, pattern="1:4").finalize()
    assert obstacle(sparser.half()) is None


def test_without_cuda_the_error_says_so():
    with pytest.raises(ValueError, match="need a CUDA device, and the network is on cpu.*sparse"):
        semi_structured(nn.Sequential(two_four()))


def test_the_layers_that_are_compressed(monkeypatch):
    """With torch's conversion replaced: which layers it is given, and what the copy computes."""
    given = []

    def convert(weight):
        assert weight.is_contiguous()
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    monkeypatch.setattr("robust_plugin.export.two_four._refuse_other_devices", lambda model: None)
    model = nn.Sequential(two_four(), nn.ReLU(), two_four(48, 64), nn.Linear(48, 4).half())
    exported, found = semi_structured(model)
    assert [torch.equal(a, model[0].weight) for a in given] == [True]
    assert found["0"] == "2:4" and "48 x 64" in found["2"] and "4 x 48" in found["3"]
    x = torch.rand(3, 128).half()
    assert torch.equal(exported(x), model(x)) and exported[0] is not model[0]
    with pytest.raises(ValueError, match="no layer can be compressed: 0 has 4 x 48 weights"):
        semi_structured(nn.Sequential(nn.Linear(48, 4).half()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's 2:4 kernels need CUDA")
def test_two_four_on_cuda():
    model = nn.Sequential(two_four(256, 256), nn.ReLU(), two_four(64, 256)).cuda()
    exported, found = semi_structured(model)
    assert set(found.values()) == {"2:4"}
    x = torch.rand(16, 256, device="cuda").half()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-2, atol=1e-2)
    dense = dense_copy(exported)
    assert torch.equal(dense[0].weight, model[0].weight)


def test_a_layer_with_a_forward_of_its_own_is_not_converted():
    model = network(nn.ReLU())
    own = model[3].forward
    model[3].forward = lambda x: own(x)
    assert obstacle(model[3]) == "has a forward of its own"


def test_a_network_with_its_pruner_attached_is_refused():
    model = nn.Sequential(nn.Linear(128, 64))
    MagnitudePruner(model, pattern="2:4")
    with pytest.raises(ValueError, match="a pruner is attached.*finalize"):
        semi_structured(model)
