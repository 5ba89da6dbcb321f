"""Files of networks with CSR layers: the same network comes back, and wrong files are refused."""

import copy

import pytest
import torch
from sparse_networks import Residual
from torch import nn

from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_files import load_sparse, save_sparse
from robust_plugin.export.csr_layers import SparseConv2d
from robust_plugin.pruning.checkpoint import save


def test_save_and_load(faster, tmp_path):
    faster(0.1)
    model, x = Residual().double(), torch.rand(2, 16, 6, 6).double()
    exported, _ = sparse(model, x)
    save_sparse(tmp_path / "s", exported)
    torch.manual_seed(9)
    fresh = Residual().double()
    loaded = load_sparse(tmp_path / "s", fresh)
    assert type(loaded.conv) is SparseConv2d and type(fresh.conv) is nn.Conv2d
    assert loaded.again is loaded.conv and not loaded.training
    assert torch.equal(loaded(x), exported(x))
    state = exported.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())
    assert state["conv.values"].dtype == torch.float64
    loaded.load_state_dict(state)


def test_files_that_do_not_fit(faster, cnn, tmp_path):
    faster(0.1)
    model, x = Residual(), torch.rand(2, 16, 6, 6)
    exported, _ = sparse(model, x)
    path = tmp_path / "s"
    for spoil, message in {
        "column": "column index|col_indices",
        "row": "crow_indices",
        "missing": "col_indices",
        "bias": "head.bias",
    }.items():
        spoiled = copy.deepcopy(exported)
        if spoil == "column":
            spoiled.conv.col_indices[3] = 10**6
        elif spoil == "row":
            spoiled.conv.crow_indices[-1] += 1
        elif spoil == "missing":
            del spoiled.head.col_indices
        else:
            spoiled.head.bias = None
        save_sparse(path, spoiled)
        with pytest.raises(ValueError, match=f"does not fit this network: .*({message})"):
            load_sparse(path, model)
    save_sparse(path, exported)
    with pytest.raises(ValueError, match="does not fit this network"):
        load_sparse(path, cnn())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load_sparse(path, model)
    save(path, model=model)
    with pytest.raises(ValueError, match="was not written by save_sparse"):
        load_sparse(path, model)
