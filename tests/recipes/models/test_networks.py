"""The papers' networks have the layers and the numbers of parameters of the papers."""

import pytest
import torch
from torch import nn

from robust_plugin.recipes.models.networks import resnet18, wide_resnet
from robust_plugin.recipes.models.registry import NAMES, build_model

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


@pytest.mark.parametrize("name", ["cnn-small", "vgg16-bn"])
def test_an_input_too_small_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="inputs of 2x32 pixels are too small"):
        build_model(name, classes=10, shape=(3, 2, 32))
