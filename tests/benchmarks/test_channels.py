"""Speed of a ResNet-18 with half and with a quarter of its channels, against the dense network.

One thread, batch 64 of 32x32 images. The networks take turns and medians are compared. Freed memory
is kept (``keep_freed_memory``).
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from robust_plugin import MagnitudePruner
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
from robust_plugin.recipes.models.networks import resnet18
from robust_plugin.recipes.runtime.workers import keep_freed_memory
from robust_plugin.runtime.timing import alternating

SHAPE = (3, 32, 32)
# Speed-up that is aimed at, by share of the channels. It is asserted for counts in multiples of 16,
# the number of floats in an AVX-512 register (8 with AVX2), and printed for others. LAMP gives the
# groups of an untrained ResNet-18 about equal counts, so that the early layers, which have the
# largest maps, keep most of their channels. That is the hardest case.
AIMS = {0.5: 3.0, 0.25: 8.0}
# Largest ratio of its time to that of a network of uniform width with as many multiply-adds.
UNIFORM = 1.3


def in_turns(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[float, float]:
    with torch.inference_mode():
        return alternating(
            lambda: first(x), lambda: second(x), seconds=6.0, clock=time.process_time
        )


@pytest.mark.bench
@pytest.mark.parametrize("round_to", [16, 8, 1])
def test_a_removed_network_is_faster(round_to: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.rand(64, *SHAPE)
    dense = resnet18(10, SHAPE).eval()
    print(
        f"\nResNet-18 at LAMP rates, round_to={round_to}, batch 64, one thread, ms of CPU time: "
        "dense / removed, and against uniform width"
    )
    for share, aim in AIMS.items():
        model = resnet18(10, SHAPE).eval()
        groups = channel_groups(model, x[:1])
        # Rates differ between groups, as learned rates do; the cost is that of the uniform network.
        pruner = MagnitudePruner(
            model, share, budget="channels", rates="lamp", groups=groups, round_to=round_to,
            example_inputs=x[:1],
        )  # fmt: skip
        removed = remove_channels(pruner, x[:1])
        uniform = resnet18(10, SHAPE, width=int(64 * share)).eval()
        before, after = in_turns(dense, removed.model, x)
        plain, ours = in_turns(uniform, removed.model, x)
        macs = removed.multiply_adds[1] / removed.multiply_adds[0]
        print(
            f"{share:.0%} of the channels, {macs:.3f} of the multiply-adds: {1e3 * before:.1f} / "
            f"{1e3 * after:.1f}, {before / after:.2f} times (aim {aim}); uniform width "
            f"{1e3 * plain:.1f} / {1e3 * ours:.1f}: {ours / plain:.2f} (aim at most {UNIFORM})"
        )
        print(f"  counts {list(removed.counts.values())}")
        if round_to == 16:
            assert before / after >= aim and ours / plain <= UNIFORM
