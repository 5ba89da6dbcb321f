"""An optimizer of the smaller network takes the steps that the old one would have taken."""

import pytest
import torch
from torch.nn import functional as F
from wide_network import A, B, C, Wide, randomised, replay, wide_groups

from robust_plugin import MagnitudePruner, carry_optimizer
from robust_plugin.channels.kept_entries import kept_entries, select
from robust_plugin.channels.remove import remove

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def step(model, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
    ids=["sgd", "adam"],
)
def test_the_next_steps_are_the_same(build):
    model = randomised(Wide(A, B, C)).double().train()
    pruner = MagnitudePruner(
        model, groups=wide_groups(model), rates={"left": 0.5, "right": 0.5, "both": 0.6}
    )
    old = build(pruner.set_phase("finetune"))
    for _ in range(2):
        step(model, old)
    small = remove(pruner, (X,), replay).model
    new = carry_optimizer(old, pruner, small)
    assert type(new) is type(old) and new is not old
    for _ in range(2):
        step(model, old)
        step(small, new)
    kept = kept_entries(pruner.groups, [mask.mask for mask in pruner.masks])
    for name, parameter in small.named_parameters():
        layer, _, key = name.rpartition(".")
        place = model.get_submodule(layer)
        large = getattr(place, key)  # with its mask
        torch.testing.assert_close(parameter, select(large, kept.get((layer, key), {})))


def test_what_is_not_this_network_is_refused():
    model = randomised(Wide(A, B, C))
    pruner = MagnitudePruner(
        model, groups=wide_groups(model), rates={"left": 0.5, "right": 0.5, "both": 0.6}
    )
    small = remove(pruner, (X.float(),), replay).model
    other = torch.optim.SGD(Wide(A, B, C).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds a parameter that the pruned network has not"):
        carry_optimizer(other, pruner, small)
    optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.1)
    with pytest.raises(ValueError, match="is not in the small network as these masks leave it"):
        carry_optimizer(optimizer, pruner, Wide(A, B, C))
    optimizer.state[model.left.bias]["odd"] = torch.zeros(3)
    with pytest.raises(ValueError, match="odd of left.bias has shape .3,., its parameter .4,."):
        carry_optimizer(optimizer, pruner, small)
