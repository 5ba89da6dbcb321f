"""Single arguments: what is legal, and what the errors say."""

import math
import timeit
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robust_plugin.runtime.values import check_call, check_model, check_path, is_number, is_whole


def test_numbers():
    for value in (0, -1, 0.5, np.float32(0.5), np.int64(3), math.inf):
        assert is_number(value)
    for value in (True, "1", None, math.nan, [1], 1j, torch.tensor(1.0)):
        assert not is_number(value)


def test_whole_numbers():
    for value in (0, -1, np.int64(3)):
        assert is_whole(value)
    for value in (True, 1.0, "1", None, np.float32(1)):
        assert not is_whole(value)


def test_models():
    model = nn.Linear(2, 2)
    assert check_model(model) is model

    class Holder:
        model = nn.Linear(2, 2)

    for wrong, says in (
        (None, "model is a NoneType; give an nn.Module."),
        (nn.ReLU, r"model is the class ReLU; give an nn.Module, made as ReLU\(\)."),
        (model.state_dict(), "A state_dict goes into one by model.load_state_dict"),
        (Holder(), "This object has one as its attribute model"),
    ):
        with pytest.raises(TypeError, match=says):
            check_model(wrong)


def test_calls():
    model, x, y = nn.Linear(8, 2), torch.rand(4, 8), torch.tensor([0, 1, 0, 1])
    check_call(model, x, y)
    check_call(model, x, torch.rand(4, 2))  # probabilities
    for wrong, kind, says in (
        ((x, y, model), TypeError, r"are \(Tensor, Tensor, Linear\).*order is \(model, x, y\)"),
        ((x, model, y), TypeError, r"order is \(model, x, y\)"),
        ((None, x, y), TypeError, "model is a NoneType"),
        ((model, x.numpy(), y), TypeError, "inputs are a ndarray; give a tensor"),
        ((model, x, y.tolist()), TypeError, "labels are a list; give a tensor"),
        ((model, x[:0], y[:0]), ValueError, r"shape \(0, 8\); the batch is empty"),
        ((model, x[0, 0], y[0]), ValueError, r"give a batch, .* One point is x\[:1\]"),
        ((model, x[0], y[0]), ValueError, r"labels have shape \(\) and inputs \(8,\); legal: one"),
        ((model, x, y[:3]), ValueError, r"labels have shape \(3,\) and inputs \(4, 8\)"),
    ):
        with pytest.raises(kind, match=says):
            check_call(*wrong)


def test_the_check_of_a_call_costs_less_than_twenty_microseconds():
    model, x, y = nn.Linear(8, 2), torch.rand(4, 8), torch.tensor([0, 1, 0, 1])
    n = 2000
    assert min(timeit.repeat(lambda: check_call(model, x, y), number=n, repeat=5)) / n < 2e-5


def test_paths(tmp_path):
    assert check_path("a/b") == Path("a/b") and check_path(tmp_path) == tmp_path
    for wrong in (None, 3, nn.ReLU()):
        with pytest.raises(TypeError, match=f"file is a {type(wrong).__name__}; give the name of"):
            check_path(wrong, name="file")
    with pytest.raises(ValueError, match="a folder; give the name of a file"):
        check_path(tmp_path, written=True)
