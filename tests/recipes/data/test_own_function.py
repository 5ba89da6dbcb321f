"""Data that a function of the user returns: its parts, labels, names and mistakes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_images import labels, points

from robust_plugin.recipes.data.datasets import load_data

MODULE = """
import numpy as np
import torch
from torch.utils.data import TensorDataset

x, y = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
more = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4

def pair():
    return (x, y), more

def arrays():
    return ((255 * x).byte().numpy(), y.numpy()), ((255 * more[0]).byte().numpy(), more[1].numpy())

def sets():
    return TensorDataset(x, y), TensorDataset(*more)

def three(folder):
    names = ["a", "b", "c", str(folder)]
    return {"train": (x, y), "validation": more, "test": more, "class_names": names}

def classes():
    train = TensorDataset(x, y)
    train.classes = ["cat", "dog", "emu", "fox"]
    return train, TensorDataset(*more)

def one():
    return x, y

def four():
    return x, y, *more

def keys():
    return {"train": (x, y), "tset": more}

def gap():
    return (x, 2 * y), (more[0], 2 * more[1])

def names():
    return {"train": (x, y), "test": more, "class_names": ["a"]}

def shapes():
    return (x, y), (more[0][..., :5], more[1])

def fails():
    return 1 / 0

def number():
    return 1, 2

def needs(path):
    return (x, y), more
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_sets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # one test changes the file at once
    monkeypatch.delitem(sys.modules, "own_sets", raising=False)


def truth() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


@pytest.mark.parametrize("function", ["pair", "arrays", "sets"])
def test_tensors_arrays_and_data_sets_give_the_same_points(function: str) -> None:
    data = load_data(f"own_sets:{function}", validation=0.2)
    assert (data.name, data.classes, data.shape) == (f"own_sets:{function}", 4, (3, 6, 6))
    assert data.class_names == ("0", "1", "2", "3")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [32, 8, 12]  # type: ignore[arg-type]
    assert labels(data.validation) == dict.fromkeys(range(4), 2)
    x, y = truth()
    if function == "arrays":
        x = (255 * x).byte() / 255
    expected = sorted(
        (image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)
    )
    assert sorted(points(data.train) + points(data.validation)) == expected
    again = load_data(f"own_sets:{function}", validation=0.2)
    assert again.content == data.content != "" and points(again.train) == points(data.train)


def test_the_digest_follows_the_values() -> None:
    first = load_data("own_sets:pair").content
    Path("own_sets.py").write_text(MODULE.replace("manual_seed(1)", "manual_seed(2)"))
    del sys.modules["own_sets"]
    assert load_data("own_sets:pair").content != first


def test_a_mapping_has_validation_points_and_names(tmp_path: Path) -> None:
    data = load_data("own_sets:three", folder=tmp_path)
    assert [len(part) for part in (data.train, data.validation)] == [40, 12]  # type: ignore[arg-type]
    assert data.class_names == ("a", "b", "c", str(tmp_path))
    assert load_data("own_sets:classes").class_names == ("cat", "dog", "emu", "fox")
    with pytest.raises(ValueError, match="validation=0.2, but .* has validation points of its own"):
        load_data("own_sets:three", validation=0.2)


def test_only_training_points_are_augmented() -> None:
    for function in ("pair", "sets"):
        data: Any = load_data(f"own_sets:{function}", augmentation="crop")
        assert points(data.train) != points(data.train)
        assert points(data.validation) == points(data.validation)
        assert points(data.test) == points(data.test)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("none", ValueError, "data 'own_sets:none': own_sets has no 'none'"),
        ("x", TypeError, "data 'own_sets:x' is a Tensor, not a function"),
        ("one", TypeError, r"returned a tuple of 2 \(Tensor, Tensor\); legal: \(train, test\), or"),
        ("four", TypeError, "returned a tuple of 4"),
        ("keys", ValueError, "returned the keys train, tset; legal: .*train, validation, test, cl"),
        ("gap", ValueError, "labels up to 6, but no training point with label 1; number the class"),
        ("names", ValueError, r"labels up to 3 and the class names \['a'\]; legal: .* at least 4"),
        ("shapes", ValueError, r"several shapes: train \(3, 6, 6\), test \(3, 6, 5\)"),
        ("fails", ValueError, "data 'own_sets:fails' failed: ZeroDivisionError"),
        ("number", TypeError, "train of own_sets:number is a int; legal: a data set with a length"),
        ("needs", TypeError, r"signature \(path\).*called with folder or with nothing"),
    ],
)
def test_mistakes_are_named(function: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(f"own_sets:{function}")
