"""Compressed checkpoints: the same bits, and smaller."""

import copy
import os

import pytest
import torch
from torch import nn

from robust_plugin import HydraPruner, MagnitudePruner, dense_state_dict
from robust_plugin.export.compressed import load_compressed, save_compressed
from robust_plugin.pruning.checkpoint import save
from robust_plugin.runtime.files import read_tensors, write_tensors

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Holder(nn.Module):
    """A model with one tensor."""

    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("weight", tensor)


def assert_same_bits(expected, found):
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        other = found[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        if tensor.is_floating_point():
            kind = BITS[tensor.element_size()]
            tensor, other = tensor.contiguous().view(kind), other.view(kind)
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("density", [0.0, 0.0001, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_same_bits_come_back(density, dtype, tmp_path):
    weight = torch.randn(70, 7, 3, 13) * (torch.rand(70, 7, 3, 13) < density)
    weight = (weight + 0.0).to(dtype)
    model = Holder(weight)
    written = save_compressed(tmp_path / "c", model)
    assert_same_bits({"weight": weight}, load_compressed(tmp_path / "c"))
    assert written.size == os.path.getsize(tmp_path / "c")
    assert written.dense_size == weight.numel() * weight.element_size()


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 510, 32766, 32767, 32768, 65534, 70000])
@pytest.mark.parametrize("value", [1.0, -0.0, torch.nan, torch.inf, 1e-45])
def test_gaps_at_the_edges_of_their_types(gap, value, tmp_path):
    """Before the first value, between two, and after the last."""
    flat = torch.zeros(3 * gap + 2)
    flat[gap] = flat[2 * gap + 1] = value
    save_compressed(tmp_path / "c", Holder(flat))
    assert_same_bits({"weight": flat}, load_compressed(tmp_path / "c"))


@pytest.mark.parametrize(
    ("kept", "encoding", "most"),
    [
        (1.0, "dense", 4.01),
        (0.5, "bitmask", 2.15),
        (0.25, "bitmask", 1.15),
        (0.05, "gaps8", 0.26),
        (0.01, "gaps8", 0.053),
        (0.0005, "gaps16", 0.0035),
    ],
)
def test_the_smallest_encoding_is_taken(kept, encoding, most, tmp_path):
    """Bytes an entry, the header of the file counted."""
    size = 1_000_000
    weight = torch.randn(1000, 1000) * (torch.rand(1000, 1000) < kept) + 0.0
    written = save_compressed(tmp_path / "c", Holder(weight))
    assert written.encodings == {"weight": encoding}
    assert written.size < most * size
    assert f"{written.size:,} bytes instead of 4,000,000" in str(written)


def test_a_pruned_network_with_and_without_its_masks(cnn, train, tmp_path):
    model = cnn()
    pruner = HydraPruner(model, 0.05)
    train(pruner, "prune")
    train(pruner, "finetune")
    state = dense_state_dict(model)
    save_compressed(tmp_path / "attached", model)
    assert_same_bits(state, load_compressed(tmp_path / "attached"))
    pruner.finalize()
    written = save_compressed(tmp_path / "finalized", model)
    assert_same_bits(model.state_dict(), load_compressed(tmp_path / "finalized"))
    assert_same_bits(state, model.state_dict())
    fresh = cnn(1)
    fresh.load_state_dict(load_compressed(tmp_path / "finalized"))
    assert written.encodings["6.weight"] == "gaps8"
    assert written.encodings["1.num_batches_tracked"] == "dense"


def test_no_negative_zero_costs_a_value(tmp_path):
    """Half of what is pruned was negative; times zero that is -0.0, which is no zero bit by bit."""
    model = nn.Linear(512, 512)
    MagnitudePruner(model, 0.02).finalize()
    assert not bool((model.weight.signbit() & (model.weight == 0)).any())
    written = save_compressed(tmp_path / "c", model)
    assert written.dense_size > 15 * written.size


def test_layouts_and_ties(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last))
    model.append(nn.Linear(4, 4))
    model.append(nn.Linear(4, 4))
    model[2].weight = model[1].weight
    MagnitudePruner(model, 0.1).finalize()
    expected = copy.deepcopy(model.state_dict())
    save_compressed(tmp_path / "c", model)
    assert_same_bits(expected, load_compressed(tmp_path / "c"))


def test_a_write_that_fails_leaves_the_old_file(cnn, tmp_path, monkeypatch):
    save_compressed(tmp_path / "c", cnn())
    before = (tmp_path / "c").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_compressed(tmp_path / "c", cnn(1))
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_foreign_and_broken_files(cnn, tmp_path):
    model = cnn()
    MagnitudePruner(model, 0.05).finalize()
    path = tmp_path / "c"
    save_compressed(path, model)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            load_compressed(path)
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_compressed(tmp_path / "absent")
    save(tmp_path / "checkpoint", model=model)
    with pytest.raises(ValueError, match="was not written by save_compressed"):
        load_compressed(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="there is no folder"):
        save_compressed(tmp_path / "nowhere" / "c", model)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t, c: t.pop("places/weight"),
        lambda t, c: t.pop("values/weight"),
        lambda t, c: t.update({"values/weight": t["values/weight"][:-1]}),
        lambda t, c: t.update({"places/weight": t["places/weight"][:-1]}),
        lambda t, c: t.update({"places/weight": t["places/weight"].float()}),
        lambda t, c: t.update({"values/weight": t["values/weight"][:1]}),
        lambda t, c: t["places/weight"].fill_(254),
        lambda t, c: t["places/weight"].fill_(255),
        lambda t, c: c["shapes"].update(weight=[3, 3]),
        lambda t, c: c["shapes"].update(weight="x"),
        lambda t, c: c["shapes"].clear(),
        lambda t, c: c["encodings"].update(weight="zip"),
        lambda t, c: c["encodings"].update(weight="dense"),
    ],
)
@pytest.mark.parametrize("kept", [0.02, 0.4])
def test_parts_that_do_not_fit(spoil, kept, tmp_path):
    weight = torch.randn(50, 40) * (torch.rand(50, 40) < kept) + 0.0
    weight[0, 0], weight[-1, -1] = 1, 1
    save_compressed(tmp_path / "c", Holder(weight))
    tensors, content = read_tensors(tmp_path / "c")
    spoil(tensors, content)
    write_tensors(tmp_path / "d", tensors, content)
    with pytest.raises(ValueError, match="weight does not fit together"):
        load_compressed(tmp_path / "d")
