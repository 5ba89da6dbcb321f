import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from robust_plugin import (
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    weight_groups,
)
from robust_plugin.masks.prunable import norm_parameters

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


class Tied(nn.Module):
    def __init__(self, embedding=False):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.first = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        if embedding:
            self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.last(self.first(self.embed(x)).relu()).mean(1))


def test_a_group_a_weight(cnn):
    groups = weight_groups(cnn())
    assert [g.name for g in groups] == ["0.weight", "3.weight", "6.weight"]
    assert [g.size for g in groups] == [72, 288, 1280]
    assert [g.cost(None) for g in groups] == [1, 1, 1]
    assert [
        g.cost({("0", "weight"): 64, ("3", "weight"): 16, ("6", "weight"): 1}) for g in groups
    ] == [
        64,
        16,
        1,
    ]
    with pytest.raises(ValueError, match="0.weight did not run in the forward pass"):
        groups[0].cost({})


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3)]
)
def test_every_kind_of_convolution(layer):
    assert [g.size for g in weight_groups(nn.Sequential(layer))] == [layer.weight.numel()]


def test_tied_linears_are_one_group_and_stay_tied():
    model, x = Tied(), torch.randint(9, (4, 5))
    pruner = HydraPruner(model, density=0.25)
    assert [g.name for g in pruner.groups] == ["first.weight", "head.weight"]
    assert [m.name for m in pruner.groups[0].members] == ["first.weight", "last.weight"]
    assert pruner.budget.full == 36 + 54 and pruner.kept == 9 + 14
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0)
    pruner.follow(optimizer)
    F.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    # Both places teach the one score tensor: against a plain network with the effective weights.
    plain = Tied()
    plain.load_state_dict(model.state_dict(), strict=False)
    plain.first.weight.data = model.first.weight.detach().clone()
    plain.last.weight = plain.first.weight
    plain.head.weight.data = model.head.weight.detach().clone()
    F.cross_entropy(plain(x), torch.tensor([0, 1, 2, 3])).backward()
    weight = model.first.parametrizations.weight.original
    wanted = pruner.masks[0].scores.sign() * weight * plain.first.weight.grad
    assert torch.allclose(pruner.masks[0].scores.grad, wanted, atol=1e-6)
    optimizer.step()
    pruner.set_phase("finetune")
    logits = model(x)
    pruner.finalize()
    assert model.first.weight is model.last.weight
    assert int(model.first.weight.count_nonzero()) == 9
    assert torch.equal(model(x), logits)
    assert list(model.state_dict()) == list(Tied().state_dict())


def test_a_weight_tied_to_an_embedding_is_refused_by_both_names():
    model = Tied(embedding=True)
    with pytest.raises(ValueError, match="head.weight and embed.weight are one tied parameter"):
        weight_groups(model)
    names = [g.name for g in weight_groups(model, exclude=["head"])]
    assert names == ["first.weight"]
    with pytest.raises(ValueError, match="first.weight and last.weight are one tied parameter"):
        weight_groups(Tied(), exclude=["last"])


def test_a_layer_under_two_names_is_one_member():
    layer = nn.Linear(6, 6)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 6)
    weight = layer.weight.detach().clone()
    pruner = MagnitudePruner(model, density=0.5)
    assert [[m.name for m in g.members] for g in pruner.groups] == [["0.weight"]]
    masked = weight * pruner.masks[0].mask
    wanted = F.linear(F.linear(x, masked, layer.bias).relu(), masked, layer.bias)
    assert torch.equal(model(x), wanted)
    pruner.finalize()
    assert type(layer) is nn.Linear and torch.equal(layer.weight, masked)
    for name in ("0", "2"):
        with pytest.raises(ValueError, match="no prunable layer that is not excluded"):
            weight_groups(model, exclude=[name])


def test_exclude_by_module_name_and_subtree(cnn):
    model = cnn()
    assert [g.name for g in weight_groups(model, ["0", model[6]])] == ["3.weight"]
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert [g.name for g in weight_groups(nested, ["0"])] == ["1.weight"]
    pruner = MagnitudePruner(model, 0.1, exclude=[model[6]])
    assert not parametrize.is_parametrized(model[6]) and len(pruner.masks) == 2
    for absent in ("fc", nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="not in the model; it has .*'0', '1', '2'"):
            weight_groups(cnn(), [absent])
    with pytest.raises(ValueError, match="no prunable layer that is not excluded"):
        weight_groups(cnn(), ["0", "3", "6"])


def test_a_parametrized_layer_is_refused_unless_excluded():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="layer '0' is parametrized already"):
        weight_groups(model)
    pruner = MagnitudePruner(model, density=0.5, exclude=["0"])
    x = torch.randn(2, 3)
    logits = model(x)
    pruner.finalize()
    assert torch.equal(model(x), logits) and parametrize.is_parametrized(model[0])


@pytest.mark.parametrize(
    "hook", [lambda m: prune.l1_unstructured(m, "weight", 0.5), nn.utils.spectral_norm]
)
def test_a_weight_made_by_a_hook_is_refused_unless_excluded(hook):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    hook(model[0])
    with pytest.raises(ValueError, match="0.weight is no parameter but made by a hook"):
        MagnitudePruner(model, density=0.5)
    assert MagnitudePruner(model, density=0.5, exclude=["0"]).kept == 8


def test_groups_say_what_is_wrong_with_them(cnn):
    model = cnn()
    with pytest.raises(ValueError, match="at least one member"):
        Group(())
    with pytest.raises(ValueError, match="members have a dim exactly where"):
        Group((Member(model[0], "0", "weight", dim=1),))
    with pytest.raises(ValueError, match="members have a dim exactly where"):
        Group((Member(model[0], "0", "weight"),), channels=3)


def test_norm_parameters_by_kind():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.Linear(5, 2)
    )
    assert len(norm_parameters(model)) == 6
    assert {id(p) for p in norm_parameters(model)} == {
        id(p) for i in (1, 2, 3) for p in model[i].parameters()
    }


# Channels: conv1 -> bn -> relu -> conv2 -> relu -> flatten -> fc, prune what conv2 and fc read.


def convnet():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )
    model[1].running_mean.normal_(), model[1].bias.data.normal_()
    return model


def channel_groups(model):
    flattened = torch.arange(5).repeat_interleave(16)  # 4x4 positions of each channel
    return [
        Group((Member(model[3], "3", "weight", dim=1),), channels=6, name="conv1 channels"),
        Group((Member(model[6], "6", "weight", dim=1, index=flattened),), channels=5),
    ]


def sliced(model, keep1, keep2):
    """The same network with the channels physically gone."""
    small = nn.Sequential(
        nn.Conv2d(1, len(keep1), 3, padding=1),
        nn.BatchNorm2d(len(keep1)),
        nn.ReLU(),
        nn.Conv2d(len(keep1), len(keep2), 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(len(keep2) * 16, 3),
    )
    state = {
        k.replace(".parametrizations.weight.original", ".weight"): v
        for k, v in model.state_dict().items()
    }
    positions = torch.cat([torch.arange(16) + 16 * c for c in keep2])
    new = {
        "0.weight": state["0.weight"][keep1],
        "0.bias": state["0.bias"][keep1],
        "3.weight": state["3.weight"][keep2][:, keep1],
        "3.bias": state["3.bias"][keep2],
        "6.weight": state["6.weight"][:, positions],
        "6.bias": state["6.bias"],
        "1.num_batches_tracked": state["1.num_batches_tracked"],
    }
    for key in ("weight", "bias", "running_mean", "running_var"):
        new[f"1.{key}"] = state[f"1.{key}"][keep1]
    small.load_state_dict(new, strict=True)
    return small


@pytest.mark.parametrize("trained", [False, True])
def test_masked_channels_equal_the_sliced_network(batch, trained):
    x, y = batch[0], batch[1] % 3
    model = convnet()
    kind = HydraPruner if trained else MagnitudePruner
    pruner = kind(model, density=0.5, groups=channel_groups(model))
    assert [g.name for g in pruner.groups] == ["conv1 channels", "6.weight"]
    assert [g.size for g in pruner.groups] == [6, 5]
    assert [int(m.kept) for m in pruner.masks] == [3, 3]
    # A channel costs the weights that read it.
    assert pruner.budget.costs == (5 * 9, 16 * 3)
    assert pruner.kept == pruner.budget.total == 3 * 45 + 3 * 48
    if trained:
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=3.0)
        pruner.follow(optimizer)
        first = [m.mask.clone() for m in pruner.masks]
        losses = []
        for _ in range(12):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            assert [int(m.mask.sum()) for m in pruner.masks] == [3, 3]
        assert any(not torch.equal(a, m.mask) for a, m in zip(first, pruner.masks, strict=True))
        assert losses[-1] < losses[0]
    keep1, keep2 = (m.mask.flatten().nonzero().flatten() for m in pruner.masks)
    small = sliced(model, keep1, keep2)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(x), small.train(mode)(x), atol=1e-5)
    model.eval()
    logits = model(x)
    pruner.finalize()
    assert torch.equal(model(x), logits)


def test_first_channel_scores_rank_by_norm():
    model = convnet()
    pruner = MagnitudePruner(model, density=0.5, groups=channel_groups(model))
    norms = [model[3].parametrizations.weight.original[:, c].norm().item() for c in range(6)]
    best = sorted(range(6), key=lambda c: -norms[c])[:3]
    assert set(pruner.masks[0].mask.flatten().nonzero().flatten().tolist()) == set(best)
    assert pruner.groups[0].magnitudes.flatten().tolist() != norms  # masked ones are zero now


def test_channel_scores_gradient_sums_over_their_weights(batch):
    model = convnet().eval()
    groups = channel_groups(model)
    weight = model[6].weight.detach().clone()
    pruner = HydraPruner(model, density=0.5, groups=groups[1:])
    pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
    hidden = model[:6](batch[0])
    a = torch.randn(16, 3)
    (model(batch[0]) * a).sum().backward()
    g = a.T @ hidden.detach()  # dL/dw_eff of the linear layer
    per_channel = (g * weight).view(3, 5, 16).sum((0, 2))
    scores = pruner.masks[0].scores
    assert torch.allclose(scores.grad.flatten(), scores.flatten().sign() * per_channel, rtol=1e-4)


@pytest.mark.parametrize("control", ["held", "hinge"])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_learned_rates_on_channels_meet_the_budget(batch, control, budget):
    x, y = batch[0], batch[1] % 3
    model = convnet()
    pruner = HarpPruner(
        model,
        0.5,
        groups=channel_groups(model),
        control=control,
        budget=budget,
        example_inputs=x[:1],
    )
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=3)
    for _ in range(6):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + pruner.budget_penalty()).backward()
        optimizer.step()
    pruner.set_phase("finetune")
    costs = (45 * 16, 48) if budget == "flops" else (45, 48)
    assert pruner.budget.costs == costs
    kept = [int(m.mask.sum()) for m in pruner.masks]
    spent = sum(c * k for c, k in zip(costs, kept, strict=True))
    assert min(kept) >= 1 and spent == pruner.kept <= pruner.budget.total
    assert all(
        k == n or spent + c > pruner.budget.total
        for c, k, n in zip(costs, kept, (6, 5), strict=True)
    )


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: [Group((Member(m[3], "3", "weight", dim=1),), channels=7)], "3.weight"),
        (
            lambda m: [
                Group((Member(m[6], "6", "weight", dim=1, index=torch.arange(80) % 7),), channels=5)
            ],
            "6.weight",
        ),
        (
            lambda m: [
                Group((Member(m[3], "3", "weight", dim=1),), channels=6),
                Group((Member(m[3], "3", "weight"),)),
            ],
            "3.weight",
        ),
        (lambda m: [Group((Member(nn.Linear(4, 2), "9", "weight"),))], "9.weight"),
        (lambda m: [Group((Member(m[3], "0", "weight"),))], "0.weight is no parameter"),
        (lambda m: [Group((Member(m[5], "5", "weight", dim=1),), channels=5)], "5.weight"),
        (lambda m: [Group((Member(m[3], "3", "weight", dim=4),), channels=6)], "3.weight"),
        (
            lambda m: [Group((Member(m[3], "3", "weight"), Member(m[6], "6", "weight")))],
            "6.weight of shape",
        ),
        (lambda m: [], "at least one group"),
    ],
)
def test_groups_that_do_not_fit_leave_the_model_alone(break_it, says):
    model = convnet()
    classes = [type(layer) for layer in model]
    with pytest.raises(ValueError, match=says):
        HydraPruner(model, density=0.5, groups=break_it(model))
    assert [type(layer) for layer in model] == classes
    assert set(model.state_dict()) == set(convnet().state_dict())


def test_groups_and_exclude_together_are_refused():
    model = convnet()
    with pytest.raises(ValueError, match="exclude"):
        HydraPruner(model, density=0.5, groups=channel_groups(model), exclude=["6"])


def test_lazy_layers_and_a_bare_exclude_are_named(cnn):
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0.weight has no shape yet; run one forward pass"):
        MagnitudePruner(lazy, 0.5)
    model = cnn()
    for bare in (model[6], "6"):
        with pytest.raises(TypeError, match="give a list of layers"):
            MagnitudePruner(model, 0.5, exclude=bare)
    with pytest.raises(ValueError, match=r"pattern is \(2, 4\)"):
        MagnitudePruner(model, pattern=(2, 4))
