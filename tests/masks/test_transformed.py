"""Layers that transform their weight: a mask that does not reach the computation is refused."""

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import Group, HydraPruner, MagnitudePruner, Member, sparsity
from robust_plugin.masks.transformed import keeps_zeros


class Signs(nn.Conv2d):
    """A binary weight: zeros become +1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.where(self.weight >= 0, 1.0, -1.0).to(x)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Ternary(nn.Linear):
    """Rounded to -1, 0 and 1, with a scale by the largest weight: zeros stay."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().max()
        return F.linear(x, scale * (self.weight / scale).round(), self.bias)


class Centred(nn.ConvTranspose2d):
    """Takes the mean of all weights away."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight - self.weight.mean(), self.bias, self.stride)


class Cosine(nn.Linear):
    """Of normalised inputs and weights: zeros stay, and every output reads every input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Loud(nn.Conv1d):
    """Doubles its output: the weight is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def used(layer: nn.Module, x: Tensor) -> Tensor:
    """The weight that a layer computes with, by unit vectors: its outputs are linear in them."""
    zero = layer(torch.zeros_like(x[:1]))
    return torch.stack([layer(e[None]) - zero for e in torch.eye(x.numel()).view(-1, *x.shape[1:])])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (StdConv2d(3, 4, 3), (3, 3, 3)),
        (ScaledStdConv2d(3, 4, 3), (3, 3, 3)),
        (Signs(3, 4, 3), (3, 3, 3)),
        (Centred(3, 4, 1), (3, 1, 1)),
        (Ternary(6, 4), (6,)),
        (Loud(3, 4, 3), (3, 3)),
        (nn.Conv2d(3, 4, 3), (3, 3, 3)),
        (nn.ConvTranspose2d(4, 6, 1, groups=2), (4, 1, 1)),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_a_layer_keeps_zeros_if_its_responses_have_no_more_entries_than_its_weight(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    judged = keeps_zeros(layer)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) < 0.4)
        found = int((used(layer, torch.rand(1, *shape)).abs() > 1e-6).sum())
    assert judged == (found <= int(layer.weight.count_nonzero()))


def test_what_a_layer_does_to_its_input_is_no_matter() -> None:
    assert keeps_zeros(Cosine(6, 4)) is True
    MagnitudePruner(nn.Sequential(Cosine(6, 4)), 0.5)


def test_a_parametrized_layer_is_judged_by_its_class() -> None:
    layer = StdConv2d(3, 4, 3)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    with torch.no_grad():
        layer.parametrizations.weight.original[:, 0] = 0
    assert keeps_zeros(layer) is False


def standardised() -> nn.Module:
    return nn.Sequential(StdConv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_a_standardised_convolution_is_refused_and_may_stay_dense() -> None:
    model = standardised()
    member = Member(model[0], "0", "weight")
    for call in (
        lambda: MagnitudePruner(model, 0.05),
        lambda: HydraPruner(model, 0.05),
        lambda: MagnitudePruner(model, 0.05, groups=[Group((member,))]),
    ):
        with pytest.raises(ValueError, match=r"'0': a StdConv2d computes with another weight"):
            call()
        assert not any("pruner_masks" in name for name in model.state_dict())
    pruner = MagnitudePruner(
        model, 0.05, exclude=[m for m in model.modules() if isinstance(m, StdConv2d)]
    )
    assert list(pruner.densities) == ["3.weight"]


def test_the_table_counts_what_is_computed_with() -> None:
    model = standardised()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(model[0].weight.shape) < 0.2)
        model[3].weight[:, 10:] = 0
    table = sparsity(model)
    assert {layer.name: layer.kept for layer in table.layers} == {"0.weight": 36, "3.weight": 100}
    assert table.transformed == ("0.weight",)
    assert "computed with other weights than the zeros stored, dense: 0.weight" in str(table)


class Gated(nn.Linear):
    """Takes a second input, so that it cannot be tried alone."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


def test_a_layer_that_cannot_be_tried_is_named() -> None:
    assert keeps_zeros(Gated(4, 4)) is None
    model = nn.ModuleList([Gated(4, 4), nn.Linear(4, 2)])
    with pytest.warns(UserWarning, match="could not be tried alone, such as '0'"):
        MagnitudePruner(model, 0.5)


@pytest.mark.parametrize(
    ("name", "taken"),
    [("resnetv2_50x1_bit", False), ("nf_resnet26", False), ("tf_efficientnet_b0", True)],
)
def test_networks_of_timm(name: str, taken: bool) -> None:
    """Standardised convolutions are refused; those that only pad in another way are not."""
    model = timm.create_model(name, num_classes=10)
    if taken:
        assert MagnitudePruner(model, 0.1).budget.density == 0.1
    else:
        with pytest.raises(ValueError, match="StdConv2d computes with another weight"):
            MagnitudePruner(model, 0.1)
