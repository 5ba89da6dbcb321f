"""The masked network and the removed one are the same network; and the budget counts the latter."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels

sys.path.insert(0, str(Path(__file__).parent))
from channel_networks import BUILD, build  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

LEVELS = {"one": lambda n: 1, "quarter": lambda n: max(1, n // 4), "half": lambda n: max(1, n // 2),
          "all but one": lambda n: n - 1}  # fmt: skip


def images(batch=8, dtype=torch.float32, size=32):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def keep(pruner, count):
    """Random scores, and this many units of every group."""
    generator = torch.Generator().manual_seed(2)
    for mask in pruner.masks:
        mask.scores.data.copy_(torch.rand(mask.scores.shape, generator=generator))
        mask.choose(count(mask.scores.numel()))


def apart(one, other):
    return float((one - other).detach().abs().max() / one.detach().abs().max())


def multiply_adds(model):
    """torch's own count, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(images(1))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_masked_equals_removed(name, dtype, bound):
    model, x = build(name).to(dtype), images(dtype=dtype)
    pruner = MagnitudePruner(model, 1.0, groups=channel_groups(model, x[:1]))
    for level in LEVELS.values():
        keep(pruner, level)
        small = remove_channels(pruner, x).model
        assert not small.training
        with torch.no_grad():
            assert apart(model(x), small(x)) < bound
        for group in pruner.groups:
            before, after = (outputs_of(m.get_submodule(group.name)) for m in (model, small))
            assert after == before // group.size * level(group.size)
    keep(pruner, LEVELS["half"])
    model.train()
    small = remove_channels(pruner, x).model
    assert small.training and model.training
    # Statistics of small batches magnify rounding; that it is rounding shows in float64.
    trained, after = model(x), small(x)
    assert apart(trained, after) < (1e-4 if dtype == torch.float32 else 1e-11)
    with torch.no_grad():  # and the running statistics moved alike
        assert apart(model.eval()(x), small.eval()(x)) < 10 * bound


def outputs_of(layer):
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
