import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_plugin.recipes.models.networks import Normalize, resnet18, wide_resnet
from robust_plugin.recipes.models.registry import NAMES, build_model, check_takes, example_of

CIFAR = (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def matrices(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.dim() > 1]


def wide_resnet_parameters(blocks: int, k: int) -> int:
    total, channels = 3 * 16 * 9, 16
    for width in (16 * k, 32 * k, 64 * k):
        for _ in range(blocks):
            shortcut = channels * width if channels != width else 0
            norms = 2 * channels + 2 * width
            total += 9 * channels * width + 9 * width * width + norms + shortcut
            channels = width
    return total + 2 * channels + 10 * channels + 10


def test_digits_cnn_has_the_weights_of_its_formula() -> None:
    model = build_model("digits-cnn", classes=10, shape=(1, 8, 8))
    weights = 32 * 9 + 64 * 32 * 9 + 64 * 64 * 9 + 128 * 64 * 2 * 2 + 10 * 128
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == weights == 89_632
    assert parameters(model) == weights + 32 + 64 + 64 + 128 + 10
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_certified_cnns_have_the_layers_of_the_papers() -> None:
    small = build_model("cnn-small", classes=10, shape=CIFAR)
    assert matrices(small) == [(16, 3, 4, 4), (32, 16, 4, 4), (100, 32 * 8 * 8), (10, 100)]
    large = build_model("cnn-large", classes=10, shape=CIFAR)
    assert matrices(large) == [
        (32, 3, 3, 3),
        (32, 32, 4, 4),
        (64, 32, 3, 3),
        (64, 64, 4, 4),
        (512, 64 * 8 * 8),
        (512, 512),
        (10, 512),
    ]
    mnist = build_model("cnn-small", classes=10, shape=(1, 28, 28))
    assert parameters(mnist) == 166_406  # Wong and Kolter's MNIST network
    for model in (small, large):
        assert isinstance(list(model.children())[-1], nn.Linear)  # logits, no ReLU behind them
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_vgg16_has_13_convolutions_and_three_linear_layers() -> None:
    model = build_model("vgg16-bn", classes=10, shape=CIFAR)
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    linears = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.out_channels for m in convs] == [m.num_features for m in norms] == widths
    assert linears == [(512, 256), (256, 256), (256, 10)]


def test_resnet18_has_the_known_number_of_parameters() -> None:
    assert parameters(build_model("resnet18", classes=10, shape=CIFAR)) == 11_173_962
    assert parameters(resnet18(10, CIFAR, width=16)) < 11_173_962 / 15


def test_wide_resnets_have_the_known_number_of_parameters() -> None:
    published = 36_479_194  # WRN-28-10
    assert parameters(wide_resnet(10, CIFAR, depth=28, width=10)) == published
    assert wide_resnet_parameters(4, 10) == published
    wrn_28_4 = build_model("wrn-28-4", classes=10, shape=CIFAR)
    assert parameters(wrn_28_4) == wide_resnet_parameters(4, 4)
    with pytest.raises(ValueError, match="depth=27"):
        wide_resnet(10, CIFAR, depth=27)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [CIFAR, (1, 40, 36)])
def test_every_network_gives_finite_logits_and_gradients(
    name: str, shape: tuple[int, int, int]
) -> None:
    model = build_model(name, classes=7, shape=shape)
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_same_seed_gives_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("digits-cnn", classes=10, shape=(1, 8, 8)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["cnn-small", "vgg16-bn"])
def test_an_input_too_small_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="inputs of 2x32 pixels are too small"):
        build_model(name, classes=10, shape=(3, 2, 32))


def test_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18.*package\.module:function"):
        build_model("resnet19", classes=10, shape=CIFAR)


# --- normalisation as a layer


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
    with pytest.raises(ValueError, match="one number a channel in each"):
        build((0.5, 0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="positive"):
        Normalize((0.5,), (0.0,))


# --- the user's own network

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
