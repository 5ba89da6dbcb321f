"""Back to the plain network: states under dense names, and checks of masks at the end."""

import copy

import pytest
import torch
from pattern_networks import counts_of_every, small, train_steps  # noqa: E402
from torch import nn

from robust_plugin import HydraPruner, MagnitudePruner, dense_state_dict, load_dense_state_dict
from robust_plugin.export.compressed import save_compressed
from robust_plugin.export.csr_files import save_sparse
from robust_plugin.pruning import checkpoint


@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_dense_state_is_the_finalized_networks_state(cnn, batch, attach, train, kind):
    model = cnn()
    pruner = attach(kind, model, 0.1)
    if kind != "magnitude":
        train(pruner, "prune")
    train(pruner, "finetune")
    state = dense_state_dict(model)
    model.eval()
    fresh = cnn(3).eval()
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh(batch[0]), model(batch[0]))
    pruner.finalize()
    final = model.state_dict()
    assert set(final) == set(state) and all(torch.equal(state[k], final[k]) for k in final)


def test_dense_state_of_a_plain_network_is_its_own(cnn):
    model = cnn()
    state = dense_state_dict(model)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_what_wrappers_put_before_the_names_is_taken_off(cnn, prefix):
    source, model = cnn(5), cnn()
    load_dense_state_dict(model, {f"{prefix}{k}": v for k, v in source.state_dict().items()})
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())
    inner = nn.Sequential()
    inner.add_module("module", cnn())  # names of its own
    load_dense_state_dict(inner, inner.state_dict())
    with pytest.raises(ValueError, match="these differ: "):
        load_dense_state_dict(cnn(), {f"net.{k}": v for k, v in source.state_dict().items()})


def test_dense_state_goes_back_in(cnn, batch):
    source, model = cnn(5), cnn()
    pruner = HydraPruner(model, density=0.1)
    masks = [mask.mask.clone() for mask in HydraPruner(cnn(5), density=0.1).masks]
    parameters = {name: p for name, p in model.named_parameters()}
    load_dense_state_dict(model, source.state_dict())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    for i, mask, chosen in zip((0, 3, 6), pruner.masks, masks, strict=True):
        assert torch.equal(mask.mask, chosen)
        assert torch.equal(model[i].weight, source[i].weight * chosen)
    load_dense_state_dict(cnn(), dense_state_dict(model))
    plain = cnn()
    load_dense_state_dict(plain, source.state_dict())
    assert torch.equal(plain(batch[0]), source(batch[0]))


def test_a_state_that_does_not_fit_is_named_and_changes_nothing(cnn):
    model = cnn()
    MagnitudePruner(model, density=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    good = cnn(5).state_dict()
    for change, says in [
        ({"6.weight": torch.zeros(2, 2)}, "6.weight"),
        ({"7.weight": torch.zeros(2)}, "7.weight"),
        ({"0.weight": None}, "0.weight"),
    ]:
        state = {k: v for k, v in {**good, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=f"these differ: {says}"):
            load_dense_state_dict(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_names_under_others_are_shown_with_the_prefix(cnn):
    model, state = cnn(), cnn(5).state_dict()
    nested = {f"backbone.{name}": tensor for name, tensor in state.items()} | {
        "head": torch.ones(2)
    }
    says = r"The state has backbone.0.weight, .*; the model has 0.weight, .*prefix 'backbone\.' off"
    with pytest.raises(ValueError, match=says):
        load_dense_state_dict(model, nested)
    load_dense_state_dict(
        model, {k.removeprefix("backbone."): t for k, t in nested.items() if k != "head"}
    )
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    outer = nn.Sequential()
    outer.add_module("encoder", cnn())
    with pytest.raises(ValueError, match="The model holds that network below another"):
        load_dense_state_dict(outer, state)
    with pytest.raises(ValueError, match="The state has no tensors; the model has 0.weight"):
        load_dense_state_dict(model, {})
    with pytest.raises(ValueError, match="has state_dict of type .*what is under 'state_dict'"):
        load_dense_state_dict(model, {"state_dict": state, "epoch": 3})
    with pytest.raises(ValueError, match="the state has 0.weight of type int; legal are tensors"):
        load_dense_state_dict(model, {**state, "0.weight": 5})
    with pytest.raises(TypeError, match="state is a list; give a mapping"):
        load_dense_state_dict(model, [1])


class Extra(nn.Linear):
    """A layer with a state of its own, which get_extra_state makes anew."""

    def __init__(self, value):
        super().__init__(3, 2)
        self.value = value

    def get_extra_state(self):
        return self.value if not isinstance(self.value, int) else torch.tensor([self.value])

    def set_extra_state(self, state):
        self.value = int(state)


@pytest.mark.parametrize("value", [{"steps": 3}, None, b"steps"])
def test_a_state_that_is_no_tensor_is_named(value, tmp_path):
    model = nn.Sequential(Extra(value))
    for call in (
        lambda: dense_state_dict(model),
        lambda: load_dense_state_dict(model, model.state_dict()),
        lambda: save_compressed(tmp_path / "file", model),
        lambda: save_sparse(tmp_path / "file", model),
        lambda: checkpoint.save(tmp_path / "file", model=model),
    ):
        with pytest.raises(ValueError, match="has 0._extra_state of type .*from get_extra_state"):
            call()
    assert not list(tmp_path.iterdir())


def test_an_extra_state_that_is_a_tensor_comes_back(tmp_path):
    source, model = nn.Sequential(Extra(3)), nn.Sequential(Extra(7))
    load_dense_state_dict(model, dense_state_dict(source))
    assert model[0].value == 3 and torch.equal(model[0].weight, source[0].weight)
    checkpoint.save(tmp_path / "file", model=source)
    again = nn.Sequential(Extra(7))
    checkpoint.load(tmp_path / "file").restore(model=again)
    assert again[0].value == 3


def test_root_layer():
    layer, fresh = nn.Linear(6, 4), nn.Linear(6, 4)
    MagnitudePruner(layer, density=0.5)
    fresh.load_state_dict(dense_state_dict(layer), strict=True)
    assert torch.equal(fresh.weight, layer.weight)


def test_a_layer_used_twice():
    def build():
        layer = nn.Linear(6, 6)
        return nn.Sequential(layer, nn.ReLU(), layer)

    model, fresh, x = build(), build(), torch.randn(3, 6)
    pruner = MagnitudePruner(model, density=0.5)
    fresh.load_state_dict(dense_state_dict(model), strict=True)
    assert torch.equal(fresh(x), model(x))
    pruner.finalize()
    assert model[0] is model[2] and torch.equal(fresh(x), model(x))


def test_a_state_under_other_names_is_told_with_both_names(cnn):
    model = cnn()
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="The state has backbone.0.weight, .* the model has 0."):
        load_dense_state_dict(model, state)


def test_finalize_checks_the_pattern():
    model = small()
    pruner = HydraPruner(model, pattern="2:4")
    for _ in train_steps(pruner, "prune", lr=0.1):
        pass
    mask = pruner.masks[1].mask
    mask[0, :8] = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()  # the count is right
    with pytest.raises(ValueError, match="mask of 6 keeps up to 3 of 4 entries instead of 2"):
        pruner.finalize(copy.deepcopy(model))
    pruner.update_masks()
    pruner.finalize()
    assert counts_of_every(model[6].weight, 4) == {2}
