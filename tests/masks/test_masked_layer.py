"""A masked layer: dense names, what reading its weight gives, and writes to it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import HydraPruner, MagnitudePruner, dense_state_dict
from robust_plugin.masks.masked_layer import is_masked, masks_of, stored_weight


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )


X, Y = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(5)), torch.arange(8) % 4


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_names_order_and_objects_are_those_of_the_plain_network() -> None:
    model, plain = network(), network()
    before = list(model.parameters())
    pruner = MagnitudePruner(model, 0.2)
    assert names(model) == names(plain)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    own = [name for name in model.state_dict() if "pruner_masks" not in name]
    assert own == list(plain.state_dict())
    assert isinstance(model[0], nn.Conv2d) and is_masked(model[0])
    pruner.finalize()
    assert type(model[0]) is nn.Conv2d and list(model.state_dict()) == list(plain.state_dict())


def test_once_the_mask_is_fixed_the_weight_is_the_parameter_with_zeros() -> None:
    model = network()
    dense = model[4].weight.detach().clone()
    pruner = MagnitudePruner(model, 0.25)
    mask = pruner.masks[1].mask
    assert model[4].weight is dict(model.named_parameters())["4.weight"]
    assert torch.equal(model[4].weight, dense * mask)
    assert torch.equal(model[4].weight == 0, ~mask)


def test_gradients_are_masked_also_where_others_read_the_weight() -> None:
    class Other(nn.Module):
        """Uses the weight of a layer without calling the layer, as BEiT's attention does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight, self.inner.bias)

    torch.manual_seed(0)
    other = Other()
    plain = nn.Linear(5, 3)
    plain.load_state_dict(other.inner.state_dict())
    MagnitudePruner(other, 0.4)
    MagnitudePruner(nn.Sequential(plain), 0.4)
    x = torch.rand(7, 5)
    outputs = other(x), plain(x)
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().sum().backward()
    grads = [layer._parameters["weight"].grad for layer in (other.inner, plain)]
    assert torch.equal(grads[0], grads[1]) and int((grads[0] == 0).sum()) == 9


WRITES: dict[str, Callable[[Any], object]] = {
    "data": lambda layer: layer.weight.data.mul_(2.0),
    "assigned data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2.0),
    "init": lambda layer: nn.init.constant_(layer.weight, 0.5),
    "reset": lambda layer: layer.reset_parameters(),
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_through_the_attribute_arrive_once_masks_are_fixed(write: str) -> None:
    model, plain = network(), network()
    pruner = MagnitudePruner(model, 0.25)
    mask = pruner.masks[1].mask
    for layer in (model[4], plain[4]):
        torch.manual_seed(9)
        WRITES[write](layer)
    found = model.eval()(X)
    with torch.no_grad():
        plain[0].weight.mul_(pruner.masks[0].mask)
        plain[4].weight.mul_(mask)
    assert torch.equal(found, plain.eval()(X))
    assert int(dense_state_dict(model)["4.weight"].count_nonzero()) == int(mask.sum())


@pytest.mark.parametrize("phase", ["attached", "prune"])
@pytest.mark.parametrize("write", [name for name in WRITES if name != "assigned data"])
def test_writes_to_the_product_of_a_learned_mask_raise(write: str, phase: str) -> None:
    model = network()
    pruner = HydraPruner(model, 0.25)
    if phase == "prune":
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
        pruner.follow(optimizer)
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    WRITES[write](model[4])
    with pytest.raises(ValueError, match="something was written to 4.weight while its mask"):
        pruner.set_phase("prune" if phase == "attached" else "finetune")


def test_reading_the_product_is_no_write() -> None:
    model = network()
    pruner = HydraPruner(model, 0.25)
    assert int(model[4].weight.count_nonzero()) == pruner.masks[1].kept
    pruner.set_phase("prune")


def test_a_write_past_the_mask_does_not_reach_the_network() -> None:
    model = network()
    MagnitudePruner(model, 0.25)
    expected = model.eval()(X)
    with torch.no_grad():  # momentum of an optimizer, noise, a perturbation: kept weights stay
        for module in (model[0], model[4]):
            (masked,) = masks_of(module, "weight")
            stored_weight(module, "weight").add_((~masked.group.mask).float())
    assert torch.equal(model(X), expected)
    assert torch.equal(model[4].weight == 0, ~masks_of(model[4], "weight")[0].group.mask)


def test_copies_pickles_and_functional_calls_compute_the_same() -> None:
    model = network().eval()
    MagnitudePruner(model, 0.25)
    expected = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        state = dict(model.named_parameters())
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        lambda x: torch.func.functional_call(model, state, (x,)),
    ):
        assert torch.equal(other(X), expected)
    twin = copy.deepcopy(model)
    model[4].reset_parameters()
    assert torch.equal(twin(X), expected)


def test_a_parametrization_that_is_added_later_is_refused() -> None:
    model = network()
    MagnitudePruner(model, 0.25)
    with pytest.raises(ValueError, match="weight of a masked Linear is no parameter any more"):
        nn.utils.parametrizations.weight_norm(model[4])


def test_the_layer_is_traced_and_repeated_like_a_plain_one() -> None:
    model = network().eval()
    MagnitudePruner(model, 0.25)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == list("01234")
    assert torch.equal(traced(X), model(X))


def test_a_state_that_is_saved_with_a_fixed_mask_has_its_zeros() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()  # momentum that would move pruned weights too
    pruner = MagnitudePruner(model, 0.25)
    pruner.set_phase("finetune")
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    kept = [int(model.state_dict()[name].count_nonzero()) for name in ("0.weight", "4.weight")]
    assert kept == [mask.kept for mask in pruner.masks]


def test_a_state_that_is_saved_while_masks_are_learned_has_all_weights() -> None:
    model = network()
    dense = model[4].weight.detach().clone()
    HydraPruner(model, 0.25).set_phase("prune")
    assert torch.equal(model.state_dict()["4.weight"], dense)
