"""Networks whose channels are pruned by random scores."""

import torch
from channel_networks import build  # noqa: E402

from robust_plugin import MagnitudePruner
from robust_plugin.adapters.torch_pruning import (
    channel_groups,
)

X = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


Y = torch.arange(8) % 5


def pruned(name, density=0.4, **options):
    """A network with its pruner, of random scores, so that no norm gives the ranking away."""
    model = build(name)
    pruner = MagnitudePruner(model, density, groups=channel_groups(model, X[:1]), **options)
    for mask in pruner.masks:
        mask.scores.data.normal_()
        mask.choose()
    return model, pruner


def attached():
    return pruned("resnet18")


def finalized():
    model, pruner = pruned("resnet18")
    pruner.finalize()
    return model, pruner
