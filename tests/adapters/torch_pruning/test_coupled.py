"""What an example alone, or evaluation alone, does not show: mixing, and branches not traced."""

import copy
import dataclasses
import warnings

import pytest
import timm
import torch
import torchvision
from pruned_channels import X
from torch import nn
from torch.nn import functional as F

from robust_plugin import Group, MagnitudePruner, Member, finalize
from robust_plugin.adapters.torch_pruning import (
    channel_groups,
    remove_channels,
)
from robust_plugin.channels import cut


def halved(model, groups, x):
    """Remove half of every group's channels, by the size of the weights."""
    pruner = MagnitudePruner(model, 0.5, budget="channels", groups=groups, example_inputs=x)
    return remove_channels(pruner, x)


class Mixing(nn.Module):
    """Zero at zero, and each pixel's channels have norm 1; in training only where it says so."""

    def __init__(self, training_only: bool) -> None:
        super().__init__()
        self.training_only = training_only
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        x = self.first(x)
        if self.training or not self.training_only:
            x = F.normalize(x, dim=1)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("training_only", [False, True])
def test_what_mixes_channels_is_found_from_an_example_of_zeros(training_only):
    model, x = Mixing(training_only), torch.zeros(1, 3, 12, 12)
    mode = " in training mode" if training_only else ""
    with pytest.warns(UserWarning, match=f"first: something between mixes the channels{mode}:"):
        groups = channel_groups(model, x)
    assert [group.name for group in groups] == ["second"]
    small = halved(model, groups, x).model
    images = torch.rand(4, 3, 12, 12)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(images), small.train(mode)(images), atol=1e-6)


@pytest.mark.parametrize("training_only", [False, True])
def test_removal_itself_is_compared_on_more_than_zeros(training_only):
    """With groups of somebody's own, nothing else stands between the network and a wrong one."""
    model = Mixing(training_only)
    reads = Member(model.second, "second", "weight", 1)
    makes = Member(model.first, "first", "weight", 0)
    pruner = MagnitudePruner(model, 0.5, groups=[Group((reads,), 8, "first", (makes,))])
    mode = "training" if training_only else "evaluation"
    with pytest.raises(ValueError, match=f"differs from the masked one by .* in {mode} mode"):
        remove_channels(pruner, torch.zeros(1, 3, 12, 12))


class Random(nn.Module):
    """Dropout by module and by function, and noise, between channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.second = nn.Dropout2d(0.5), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        if self.training:
            x = x + torch.randn_like(x)
            x = x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)
        x = F.dropout(F.relu(self.second(x)), 0.3, self.training)
        return self.head(x.mean((2, 3)))


def test_random_layers_do_not_keep_channels_from_going():
    model, x = Random().train(), torch.zeros(1, 3, 12, 12)
    state = torch.get_rng_state()
    groups = channel_groups(model, x)
    assert [group.name for group in groups] == ["first", "second"]
    assert torch.equal(torch.get_rng_state(), state)
    before = copy.deepcopy(model.state_dict())
    removed = halved(model, groups, x)
    assert removed.counts == {"first": 4, "second": 4} and removed.difference < 1e-6
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"])
    images = torch.rand(4, 3, 12, 12)
    assert torch.allclose(model.eval()(images), removed.model.eval()(images), atol=1e-6)


class Branching(nn.Module):
    """A side branch that reads what the trunk reads, in one of the ways a trace does not see."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.side, self.exit = nn.Linear(8, 5), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x, early=False):
        x = torch.relu(self.first(x))
        if early:
            return self.exit(self.side(x).mean((2, 3)))
        out = self.head(torch.relu(self.second(x)).mean((2, 3)))
        if self.kind == "auxiliary" and self.training:
            return out, self.exit(self.side(x).mean((2, 3)))
        if self.kind == "no_grad":
            with torch.no_grad():
                side = self.exit(self.side(x).mean((2, 3)))
            out = out + side
        return out


@pytest.mark.parametrize("kind", ["auxiliary", "no_grad"])
def test_a_branch_outside_the_trace_keeps_what_it_reads(kind):
    model, x = Branching(kind).eval(), torch.rand(1, 3, 12, 12)
    with pytest.warns(UserWarning) as caught:
        groups = channel_groups(model, x)
    said = [str(each.message) for each in caught]
    assert any("layers exit, side run outside the graph" in each for each in said)
    mode = " in training mode" if kind == "auxiliary" else ""
    assert any(f"first: without them side does not run{mode} (" in each for each in said)
    assert [group.name for group in groups] == ["second"]
    small = halved(model, groups, x).model
    assert small.second.out_channels == 4
    images = torch.rand(4, 3, 12, 12)
    for training in (True, False):
        wanted, found = model.train(training)(images), small.train(training)(images)
        for one, other in zip(wanted, found, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_layers_that_never_run_are_named():
    model, x = Branching("early").eval(), torch.rand(1, 3, 12, 12)
    with pytest.warns(UserWarning, match="layers exit, side never ran on example_inputs"):
        groups = channel_groups(model, x)
    assert [group.name for group in groups] == ["first", "second"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what the warning says to do is heard
        groups = channel_groups(model, x, ignored=["first", "side", "exit"])
    small = halved(model, groups, x).model
    images = torch.rand(4, 3, 12, 12)
    for early in (True, False):
        assert torch.allclose(model(images, early), small(images, early), atol=1e-6)


@pytest.mark.bench
def test_auxiliary_heads_of_googlenet_run_on_after_removal():
    torch.manual_seed(0)
    model = torchvision.models.googlenet(
        num_classes=10, aux_logits=True, init_weights=False, dropout=0.0, dropout_aux=0.0
    ).eval()
    x = torch.zeros(1, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"aux1.conv.conv does not run in training mode"):
        groups = channel_groups(model, x)
    small = halved(model, groups, x).model.double().train()
    masked = copy.deepcopy(model)
    finalize(masked)
    masked, images = masked.double().train(), torch.rand(4, 3, 64, 64, dtype=torch.float64)
    for one, other in zip(masked(images), small(images), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


def test_a_group_may_have_a_name_of_the_users_own():
    torch.manual_seed(0)
    plain, x = Random().eval(), torch.rand(1, 3, 12, 12)
    named = copy.deepcopy(plain)
    groups = [
        dataclasses.replace(group, name=f"mine {number}")
        for number, group in enumerate(channel_groups(named, x))
    ]
    wanted, found = halved(plain, channel_groups(plain, x), x), halved(named, groups, x)
    assert list(found.counts) == ["mine 0", "mine 1"] and found.history == wanted.history
    for one, other in zip(wanted.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(one, other)
    norms_only = dataclasses.replace(
        groups[0], coupled=tuple(m for m in groups[0].coupled if m.layer_name == "norm")
    )
    with pytest.raises(ValueError, match="mine 0: no convolution or linear layer among"):
        _ = norms_only.producer


def test_groups_that_fail_only_together_are_named_together(monkeypatch):
    """Each half alone passes, so that no single group is to blame."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))

    def wrong(model, inputs, trial, groups, *, share, replay):
        return "they clash" if len(groups) == 2 else None

    monkeypatch.setattr(cut, "_wrong", wrong)
    with pytest.raises(ValueError, match="can be removed, but not all together: they clash"):
        channel_groups(model, torch.rand(1, 1, 9, 9))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_networks_of_several_outputs_keep_the_channels_of_each(kind):
    """What is an output stays whole, also where a layer reads it as well."""

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.c = nn.Conv2d(8, 4, 3)

        def forward(self, x):
            features = self.b(self.a(x).relu())
            out = (features, self.c(features.relu()))
            return out if kind is tuple else dict(zip("xy", out, strict=True))

    model = Several()
    groups = channel_groups(model, X[:1])
    assert [g.name for g in groups] == ["a"]
    small = remove_channels(MagnitudePruner(model, groups=groups, rates={"a": 0.5}), X).model
    assert (small.a.out_channels, small.b.out_channels, small.c.out_channels) == (4, 8, 4)


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (nn.GroupNorm(2, 8), "1 normalises over channels"),
        (nn.Sequential(nn.Flatten(2), nn.LayerNorm(1024), nn.Unflatten(2, (32, 32))), "1.1 norm"),
        (nn.InstanceNorm2d(8, track_running_stats=True), "1 has running statistics"),
        (nn.InstanceNorm2d(8), None),
        (nn.Softmax(1), "mixes the channels"),
        (nn.PixelShuffle(2), "a reshape takes them"),
        (nn.ChannelShuffle(2), "mixes the channels"),
    ],
)
def test_what_mixes_channels_is_refused_with_the_reason(middle, says):
    inputs = 2 if isinstance(middle, nn.PixelShuffle) else 8
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), middle, nn.Conv2d(inputs, 4, 3))
    if says is None:
        pruner = MagnitudePruner(model, groups=channel_groups(model, X[:1]), rates={"0": 0.5})
        assert remove_channels(pruner, X).model[0].out_channels == 4
    else:
        with pytest.raises(ValueError, match=f"can be removed.*{says}"):
            channel_groups(model, X[:1])


def test_tied_and_unknown_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    with pytest.raises(ValueError, match="a.weight and b.weight are one parameter; 2 in all"):
        channel_groups(Tied(), torch.rand(2, 3))
    shuffle = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    with pytest.raises(ValueError, match="torch-pruning cannot read the graph of ShuffleNetV2"):
        channel_groups(shuffle, X[:1])
    with pytest.raises(ValueError, match="Linear has no channels between two layers that can be"):
        channel_groups(nn.Linear(3, 2), torch.rand(2, 3))


def test_transformers_lose_the_width_of_their_perceptrons_only():
    small_vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, **small_vit)
    torchvision_vit = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    convnext = timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1))
    for model, hidden in (
        (vit, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
        (torchvision_vit, [f"encoder.layers.encoder_layer_{i}.mlp.0" for i in range(2)]),
        (convnext, [f"stages.{i}.blocks.0.mlp.fc1" for i in range(4)]),
    ):
        model.eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
        with pytest.warns(UserWarning, match="stay dense, .* norm.*Name these layers in ignored"):
            groups = channel_groups(model, X[:1])
        assert [g.name for g in groups] == hidden
        pruner = MagnitudePruner(model, 0.5, budget="channels", groups=groups, example_inputs=X[:1])
        removed = remove_channels(pruner, X)
        assert torch.allclose(removed.model(X), model(X), rtol=1e-4, atol=1e-4)
        for name in hidden:
            before, after = (m.get_submodule(name).weight for m in (model, removed.model))
            assert 2 * len(after) == len(before)


def test_global_response_normalisation_is_found_by_trial():
    """Its scale starts at zero, where it does nothing: a comparison at once would pass."""
    model = timm.create_model("convnextv2_atto", num_classes=10, depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="mlp.fc1: something between mixes the channels"):
        channel_groups(model, X[:1])
