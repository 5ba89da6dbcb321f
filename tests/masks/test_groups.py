"""Groups: what members may be, and groups of channels against networks that are smaller."""

import copy
import pickle

import pytest
import torch
from convnet_channels import channel_groups, convnet  # noqa: E402
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    weight_groups,
)
from robust_plugin.masks.groups import Groups

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


def test_groups_say_what_is_wrong_with_them(cnn):
    model = cnn()
    with pytest.raises(ValueError, match="at least one member"):
        Group(())
    with pytest.raises(ValueError, match="members have a dim exactly where"):
        Group((Member(model[0], "0", "weight", dim=1),))
    with pytest.raises(ValueError, match="members have a dim exactly where"):
        Group((Member(model[0], "0", "weight"),), channels=3)


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
    state = model.state_dict()
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
    norms = [model[3]._parameters["weight"][:, c].norm().item() for c in range(6)]
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


def test_a_pruner_takes_the_inputs_that_its_groups_were_traced_with():
    groups = tuple(Group((Member(nn.Linear(2, 2), "", "weight"),)) for _ in range(2))
    x = (torch.zeros(1, 2),)
    found = Groups(groups, x)
    assert found == groups and found.example_inputs is x
    again = pickle.loads(pickle.dumps(Groups((), x)))
    assert isinstance(again, Groups) and torch.equal(again.example_inputs[0], x[0])
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    weights, inputs = weight_groups(model), (torch.zeros(1, 4),)
    given = MagnitudePruner(copy.deepcopy(model), 0.5, budget="flops", example_inputs=inputs)
    taken = MagnitudePruner(model, 0.5, budget="flops", groups=Groups(weights, inputs))
    assert taken.example_inputs == inputs and taken.kept == given.kept
    with pytest.raises(ValueError, match="give example_inputs"):
        MagnitudePruner(nn.Linear(2, 2), 0.5, budget="flops")
