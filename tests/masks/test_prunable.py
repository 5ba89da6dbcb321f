"""What masks can cover: groups of weights, what is excluded, and models that are refused."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from robust_plugin import Group, HydraPruner, MagnitudePruner, Member, weight_groups
from robust_plugin.masks.prunable import (
    norm_parameters,
    prunable_members,
    refuse_masked,
    refuse_tied,
    refuse_wrapped,
    warn_of_uncovered,
)


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
    weight = model.first._parameters["weight"]
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


class Adapted(nn.Module):
    """A layer as LoRA of peft has it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_lora_matrices_and_originals_of_retrained_layers_stay_dense():
    head = nn.ModuleDict(
        {
            "original_module": nn.Linear(6, 3),
            "modules_to_save": nn.ModuleDict({"default": nn.Linear(6, 3)}),
        }
    )
    model = nn.ModuleDict({"body": Adapted(nn.Linear(6, 6)), "head": head})
    assert [g.name for g in weight_groups(model)] == [
        "body.base_layer.weight",
        "head.modules_to_save.default.weight",
    ]
    pruner = MagnitudePruner(model, density=0.5)
    pruner.finalize()
    body = model["body"]
    assert int(body.base_layer.weight.count_nonzero()) == 18
    assert body.lora_A["default"].weight.all() and body.lora_B["default"].weight.all()
    # Layers of these names alone are ordinary ones.
    plain = nn.ModuleDict({"lora_A": nn.Linear(2, 2), "original_module": nn.Linear(2, 2)})
    assert len(weight_groups(plain)) == 2


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


def test_norm_parameters_by_kind():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.Linear(5, 2)
    )
    assert len(norm_parameters(model)) == 6
    assert {id(p) for p in norm_parameters(model)} == {
        id(p) for i in (1, 2, 3) for p in model[i].parameters()
    }


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


def test_attention_has_a_member_per_weight():
    model = nn.ModuleDict(
        {"a": nn.MultiheadAttention(8, 2), "b": nn.MultiheadAttention(8, 2, kdim=6)}
    )
    names = [member.name for member in prunable_members(model)]
    assert names == ["a.in_proj_weight", "a.out_proj.weight"] + [
        f"b.{name}" for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    ] + ["b.out_proj.weight"]


def test_a_mask_that_covers_little_of_a_model_is_said():
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 8, bias=False))
    with pytest.warns(UserWarning, match="masks cover 7.4% of the 864 .* largest being 0.weight"):
        warn_of_uncovered(model, weight_groups(model))
    small = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    warn_of_uncovered(small, weight_groups(small))  # half is enough


@pytest.mark.parametrize(
    "change",
    [
        lambda model: MagnitudePruner(model, 0.5),
        lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
        lambda model: nn.utils.parametrizations.orthogonal(model[0]),
    ],
)
def test_layers_with_a_mask_are_refused_where_channels_are_cut(change):
    model = nn.Sequential(nn.Linear(4, 4))
    refuse_masked(model)
    change(model)
    with pytest.raises(ValueError, match="layer '0' carries a mask or another parametrization"):
        refuse_masked(model)


def test_tied_parameters_are_refused_where_channels_are_cut():
    model = Tied()
    tied = Group((Member(model.first, "first", "weight", 1),), 6)
    with pytest.raises(ValueError, match="first.weight and last.weight are one parameter"):
        refuse_tied(model, tied)
    refuse_tied(model, Group((Member(model.head, "head", "weight", 1),), 6))


def test_wrappers_and_graphs_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    refuse_wrapped(model)
    refuse_wrapped(fx.symbolic_trace(model))  # a graph, but its layers are there
    for wrapped, says in [
        (nn.DataParallel(model), "wrapped in DataParallel; give model.module"),
        (torch.compile(model), "wrapped in OptimizedModule; give model._orig_mod"),
        (torch.export.export(model, (torch.rand(1, 4),)).module(), "made by torch.export"),
    ]:
        with pytest.raises(ValueError, match=says):
            refuse_wrapped(wrapped)
    with pytest.raises(TypeError, match="model is a list; give an nn.Module"):
        refuse_wrapped([model])
