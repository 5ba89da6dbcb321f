"""What entries cost: multiply-adds of single weights, and of networks with fewer channels."""

import itertools

import pytest
import torch
from torch import nn
from wide_network import A, B, C, Wide, sizes, wide_groups  # noqa: E402

from robust_plugin import Budget, Group, Member
from robust_plugin.budget.costs import count_terms, multiply_adds, total_multiply_adds

CASES = [
    (nn.Conv2d(3, 8, 3), (3, 9, 9), 7 * 7),
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 33, 33), 17 * 17),
    (nn.Conv2d(3, 8, 3, stride=2), (3, 32, 32), 15 * 15),  # floored: 15, not 15.5
    (nn.Conv2d(3, 8, (1, 5), stride=(1, 3), dilation=2), (3, 6, 20), 6 * 4),
    (nn.Conv2d(8, 16, 3, groups=4, padding=1), (8, 5, 6), 30),
    (nn.Conv1d(4, 4, 3, groups=4), (4, 12), 10),
    (nn.Conv3d(2, 3, 2), (2, 4, 5, 6), 3 * 4 * 5),
    (nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), (3, 6, 7), 42),
    (nn.ConvTranspose2d(4, 6, 3, stride=3, groups=2), (4, 5, 5), 25),
    (nn.Linear(6, 3), (6,), 1),
    (nn.Linear(6, 3), (17, 6), 17),
    (nn.Linear(6, 3), (4, 5, 6), 20),
]


@pytest.mark.parametrize(("layer", "shape", "positions"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_weight_works_once_a_position(layer, shape, positions, batch):
    found = multiply_adds(nn.Sequential(layer), (torch.randn(batch, *shape),))
    assert found == {("0", "weight"): positions}


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    # Where there is padding a weight also meets zeros: counted as work, though it adds nothing.
    [case for case in CASES if not any(getattr(case[0], "padding", (0,)))],
)
def test_and_that_many_gradients_add_up(layer, shape, positions):
    """Inputs of one and gradients of one: what reaches a weight counts how often it was used."""
    layer.zero_grad()
    layer(torch.ones(1, *shape)).sum().backward()
    assert bool((layer.weight.grad == positions).all())


def test_a_layer_called_twice_counts_twice_and_an_unused_one_not():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.shared(self.shared(x))

    assert multiply_adds(Twice(), (torch.randn(2, 4),)) == {("shared", "weight"): 2}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kdim", [None, 12])
def test_multihead_attention(batch_first, kdim):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(
                8, 2, kdim=kdim, vdim=kdim, batch_first=batch_first
            )
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            key = x if kdim is None else x.repeat(1, 1, 2)[..., :kdim]
            tokens = x if batch_first else x.transpose(0, 1)
            key = key if batch_first else key.transpose(0, 1)
            out, _ = self.attention(query=tokens, key=key, value=key)
            return self.head(out.mean(1 if batch_first else 0))

    found = multiply_adds(Net(), (torch.randn(2, 5, 8),))
    assert found == {
        ("attention", "in_proj_weight"): 5,
        ("attention.out_proj", "weight"): 5,
        ("head", "weight"): 1,
    }


def test_transformer_encoder_is_seen_through_its_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = multiply_adds(nn.TransformerEncoder(layer, 2), (torch.randn(1, 7, 8),))
    names = ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    assert {name for name, _ in found} == {f"layers.{i}.{n}" for i in (0, 1) for n in names}
    assert set(found.values()) == {7}


def test_the_model_is_left_alone_also_when_its_forward_fails(cnn, batch):
    model = cnn()
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert multiply_adds(model, (batch[0][:2],)) == {
        ("0", "weight"): 64,
        ("3", "weight"): 16,
        ("6", "weight"): 1,
    }
    with pytest.raises(ValueError, match="cannot take example_inputs of shape"):
        multiply_adds(model, (batch[0][:, :, :4],))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_the_cost_is_of_the_network_that_is_left_at_all_counts():
    model, x = Wide(A, B, C), torch.rand(1, 1, 8, 8)
    macs = multiply_adds(model, x)
    assert total_multiply_adds(model, x) == sizes(model)[1]
    budgets = []
    for counted in (None, macs):
        terms = count_terms(model, wide_groups(model), counted)
        assert terms.products and any(i == j for i, j, _ in terms.products)
        budgets.append(Budget((A, B, C), terms.costs, 1.0, 0, terms.products, terms.fixed))
    for counts in itertools.product(range(1, A + 1), range(1, B + 1), range(1, C + 1)):
        assert tuple(int(budget.cost(counts)) for budget in budgets) == sizes(Wide(*counts))
    assert tuple(budget.full for budget in budgets) == sizes(model)


def test_tied_weights_are_stored_once_and_computed_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    group = Group(
        (Member(model[2], "2", "weight", 1),), 6, "1",
        (Member(model[1], "1", "weight", 0), Member(model[1], "1", "bias", 0)),
    )  # fmt: skip
    terms = count_terms(model, [group], None)
    assert (terms.costs, terms.products, terms.fixed) == ((7,), (), 16 + 4 + 4 + 2)
    macs = {(str(i), "weight"): 1 for i in range(4)}
    assert count_terms(model, [group], macs).fixed == 32
