import pytest
import torch
from torch import nn

from robust_plugin import HydraPruner, MagnitudePruner, dense_state_dict, load_dense_state_dict


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
    masks = [mask.mask.clone() for mask in pruner.masks]
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
