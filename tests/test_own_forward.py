"""Masks on layers whose forward is their own: pruned weights are zero in what is computed."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn import functional as F

from robust_plugin import Group, MagnitudePruner, Member, sparsity
from robust_plugin.own_forward import obstacle


class Rounded(nn.Linear):
    """Quantised on the way: zero stays zero."""

    def forward(self, x):
        return F.linear(x, (self.weight * 16).round() / 16, self.bias)


class Product(nn.Linear):
    """By the operator, with the weight transposed, maybe square."""

    def forward(self, x):
        return x @ self.weight.t() + self.bias


class Signs(nn.Conv2d):
    """Binary weights, in which a zero is -1."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, torch.where(weight > 0, 1.0, -1.0), bias)


class LowRank(nn.Linear):
    """W + B A with B zero at the start, as LoRA's."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.a = nn.Parameter(torch.rand(2, self.in_features))
        self.b = nn.Parameter(torch.zeros(self.out_features, 2))

    def forward(self, x):
        return F.linear(x, self.weight + self.b @ self.a, self.bias)


class Conditioned(nn.Linear):
    def forward(self, x, style):
        return super().forward(x * style)


class Hidden(nn.Linear):
    def forward(self, x):
        return (x[..., None, :] * self.weight).sum(-1) + self.bias


WRONG = [
    (StdConv2d(4, 6, 3), "computes with other weights"),
    (ScaledStdConv2d(4, 6, 3), "computes with other weights"),
    (StdConv2d(4, 4, 3, groups=4), "computes with other weights"),
    (Signs(4, 6, 3, padding=1, padding_mode="reflect"), "computes with other weights"),
    (LowRank(5, 5), "computes with other weights"),
    (Conditioned(5, 5), "does not run alone"),
    (Hidden(5, 4), "no product with its weight was found"),
]


@pytest.mark.parametrize(("layer", "says"), WRONG, ids=lambda each: type(each).__name__)
def test_a_layer_whose_zeros_are_not_zero_is_refused(layer, says):
    model = nn.Sequential(layer)
    before = copy.deepcopy(model.state_dict())
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=f"layer '0' is a {kind}, which .*{says}.*exclude="):
        MagnitudePruner(model, 0.05)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    inputs = Group((Member(layer, "0", "weight", dim=1),), channels=layer.weight.shape[1])
    with pytest.raises(ValueError, match=f"layer '0' is a {kind}"):
        MagnitudePruner(model, 0.5, groups=[inputs])


RIGHT = [
    Rounded(6, 4),
    Product(5, 5),
    Product(1, 1),
    Conv2dSame(4, 6, 3, stride=2),
    nn.Conv2d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3),
    nn.modules.linear.NonDynamicallyQuantizableLinear(4, 3),
]


@pytest.mark.parametrize("layer", RIGHT, ids=lambda each: type(each).__name__)
def test_a_layer_whose_zeros_are_zero_is_pruned(layer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    MagnitudePruner(nn.Sequential(layer), 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_verdicts_are_those_of_the_derivatives():
    """One output position: an input entry is multiplied by one weight, zero where it is pruned."""
    x = torch.rand(1, 4, 3, 3)
    for layer, stays in ((StdConv2d(4, 6, 3, padding=0), False), (nn.Conv2d(4, 6, 3), True)):
        with torch.no_grad():
            layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
        multipliers = torch.autograd.functional.jacobian(layer, x).view_as(layer.weight)
        pruned = multipliers[layer.weight == 0]
        assert bool((pruned == 0).all()) == stays == (obstacle(layer) is None)
        assert stays or bool((pruned != 0).all())


def test_the_table_does_not_claim_what_is_not_computed():
    model = nn.Sequential(StdConv2d(4, 6, 3), nn.Conv2d(6, 6, 3))
    with torch.no_grad():
        for layer in model:
            layer.weight.view(-1)[10:] = 0
    found = sparsity(model, torch.rand(1, 4, 9, 9))
    assert [(layer.kept, layer.size) for layer in found.layers] == [(216, 216), (10, 324)]
    assert found.transformed == ("0.weight",) and found.kept == 226
    assert "zeros that the layer's own forward computes with, dense: 0.weight" in str(found)
    fresh = sparsity(nn.Sequential(StdConv2d(4, 6, 3)))
    assert fresh.transformed == () and fresh.density == 1.0


def test_the_rest_of_such_a_network_is_pruned():
    model = nn.Sequential(StdConv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 49, 5))
    pruner = MagnitudePruner(
        model, 0.1, exclude=[m for m in model.modules() if type(m).__name__ == "StdConv2d"]
    )
    assert [group.name for group in pruner.groups] == ["2.weight"]


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "eca_nfnet_l0"])
def test_networks_of_standardised_convolutions(name):
    with pytest.raises(ValueError, match="layer 'stem.* is a .*StdConv2d, which computes with"):
        MagnitudePruner(timm.create_model(name, num_classes=10), 0.05)


def test_networks_of_plain_weights_are_pruned_as_before():
    small_vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    for model in (
        timm.create_model("tf_efficientnet_b0", num_classes=10),
        timm.create_model("vit_tiny_patch16_224", num_classes=10, **small_vit),
        torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10),
        torchvision.models.mobilenet_v3_small(num_classes=10),
    ):
        for layer in model.modules():
            if isinstance(layer, nn.Linear):  # a head may be zero at the start
                nn.init.normal_(layer.weight)
        pruner = MagnitudePruner(model, 0.05)
        pruner.finalize()
        assert sparsity(model).kept == pruner.kept == pruner.budget.total
