"""Networks by name or import path, with normalisation as a layer, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.threat.layers import Normalize

CIFAR = (3, 32, 32)


def test_the_same_seed_gives_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("digits-cnn", classes=10, shape=(1, 8, 8)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18.*package\.module:function"):
        build_model("resnet19", classes=10, shape=CIFAR)


def test_normalisation_is_the_first_layer() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    torch.manual_seed(0)
    plain = build_model("cnn-small", classes=10, shape=CIFAR)
    torch.manual_seed(0)
    model = build_model("cnn-small", classes=10, shape=CIFAR, mean=mean, std=std)
    x = torch.rand(4, *CIFAR)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model(x), plain(by_hand))
    assert torch.equal(model.state_dict()["normalize.mean"].flatten(), torch.tensor(mean))


def test_bad_normalisation_is_refused() -> None:
    def build(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> nn.Module:
        return build_model("cnn-small", classes=10, shape=CIFAR, mean=mean, std=std)

    with pytest.raises(ValueError, match="give both, or neither"):
        build((0.5, 0.5, 0.5), None)
    with pytest.raises(ValueError, match="3 channels"):
        build((0.5,), (0.5,))
    with pytest.raises(ValueError, match="one number per channel in each"):
        build((0.5, 0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="positive"):
        Normalize((0.5,), (0.0,))


USER_MODULE = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, num_classes=3):
        super().__init__(4, num_classes)

def fixed():
    return nn.Linear(4, 5)

def anything(**kwargs):
    return nn.Linear(4, kwargs["num_classes"])

def needy(width):
    return nn.Linear(width, 3)

def wrong():
    return "a network"

zoo = Net
number = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the user, in the current folder, which no path entry names."""
    (tmp_path / "my_networks.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(("name", "out"), [("Net", 8), ("fixed", 5), ("anything", 8), ("zoo", 8)])
def test_a_users_function_gets_num_classes_where_it_accepts_it(name: str, out: int) -> None:
    model = build_model(f"my_networks:{name}", classes=8, shape=(4, 1, 1))
    assert isinstance(model, nn.Linear) and model.out_features == out


def test_torchvision_by_its_path() -> None:
    model = build_model("torchvision.models:mobilenet_v3_small", classes=6, shape=CIFAR)
    assert model.eval()(torch.rand(2, *CIFAR)).shape == (2, 6)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:f", ValueError, "cannot import 'no_such_module'"),
        ("my_networks:absent", ValueError, "my_networks has no 'absent'"),
        ("my_networks:number", TypeError, "is a int, not a function"),
        ("my_networks:needy", TypeError, r"signature \(width\).*wrap it in a function"),
        ("my_networks:wrong", TypeError, "returned a str, not an nn.Module"),
    ],
)
def test_a_users_mistake_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_model(name, classes=8, shape=(4, 1, 1))


def test_the_example_is_random_the_same_each_time_and_draws_from_nobody() -> None:
    before = torch.get_rng_state()
    one = example_of((3, 4, 5))
    torch.manual_seed(7)
    two = example_of((3, 4, 5))
    torch.set_rng_state(before)
    assert torch.equal(one, two) and one.shape == (1, 3, 4, 5)
    assert 0 <= one.min() < one.max() <= 1 and len(one.unique()) == 60
    example_of((3, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.Linear(9, 2)], r"does not take inputs of shape \(1, 3, 4, 4\): mat1"),
        ([nn.Conv2d(3, 2, 1)], r"gives \(1, 2, 4, 4\) for inputs of shape \(1, 3, 4, 4\)"),
        ([nn.Flatten(), nn.Linear(48, 2)], "gives 2 logits, and the data has 3 classes"),
    ],
)
def test_a_network_that_does_not_take_the_data_is_named(
    layers: list[nn.Module], message: str
) -> None:
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=f"model 'mine:net' {message}"):
        check_takes(model, "mine:net", torch.zeros(1, 3, 4, 4), 3)
    assert model.training
