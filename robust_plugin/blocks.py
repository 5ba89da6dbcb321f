"""Counts in whole blocks: channels by as many as hardware computes at a time.

A register holds 8 float32 with AVX2 and 16 with AVX-512. A ResNet-18 with half its channels at LAMP
rates, against the dense one on a CPU with AVX-512: 2.3 times as fast at any counts, 2.8 in blocks
of 8, 3.2 of 16; with a quarter 7.0, 7.2 and 9.4 (tests/benchmarks/test_channels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.budget import Budget
from robust_plugin.groups import Group


def block_sizes(groups: Sequence[Group], round_to: int) -> tuple[int, ...]:
    """Return each group's block: ``round_to`` where that divides its channels, else 1.

    Raises:
        TypeError: if round_to is no integer.
        ValueError: if it is below 1, or above and divides the channels of no group.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int):
        raise TypeError(f"round_to is {round_to!r}; legal: an integer of 1 or more, such as 8.")
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}; legal: 1 (any count) or more, such as 8 or 16.")
    channels = [group.channels for group in groups if group.channels]
    if round_to > 1 and not channels:
        raise ValueError(
            f"round_to is {round_to}, but the groups are of single weights, where no count is "
            "faster than another; give groups=channel_groups(model, x[:1]), or leave round_to out."
        )
    if round_to > 1 and all(size % round_to for size in channels):
        raise ValueError(
            f"round_to is {round_to}, which divides the size of no group: they have "
            f"{', '.join(map(str, sorted(set(channels))))} channels; take a divisor of these."
        )
    return tuple(
        round_to if group.channels and group.channels % round_to == 0 else 1 for group in groups
    )


@dataclass(frozen=True)
class BlockBudget(Budget):
    """A budget that is spent in whole blocks of entries, at least one a group.

    Odd counts leave part of every vector instruction idle, so that fewer multiply-adds are not
    faster. A budget of entries is one of blocks at other prices: n_l = s_l b_l costs
    fixed + sum_l (c_l s_l) b_l + sum_ij (c_ij s_i s_j) b_i b_j.

    Attributes:
        steps: s_l, the entries of a block, a divisor of n_l.
    """

    steps: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise a ValueError unless the total buys one block of every group."""
        least = self.cost(self.steps)
        if self.total < least:
            raise ValueError(
                f"density is {self.density:g} and leaves {self.total / self.full:.3g} of the "
                f"network's cost, but one block of every group (round_to={max(self.steps)}) and "
                f"what is not pruned already cost {least / self.full:.3g}; take a greater density "
                "or a smaller round_to."
            )

    @property
    def blocks(self) -> Budget:
        """The same budget, counted in blocks."""
        s = self.steps
        return Budget(
            tuple(size // step for size, step in zip(self.sizes, s, strict=True)),
            tuple(cost * step for cost, step in zip(self.costs, s, strict=True)),
            self.density,
            self.total,
            tuple((i, j, cost * s[i] * s[j]) for i, j, cost in self.products),
            self.fixed,
        )

    def round(self, densities: Sequence[float]) -> list[int]:
        """Round densities to whole blocks within the total, what is left buying more of them."""
        return self._entries(self.blocks.round(densities))

    def asked(self, densities: Sequence[float]) -> list[int]:
        """Return the counts that densities ask for, on budget or not, rounded up to blocks."""
        return self._entries(self.blocks.asked(densities))

    def _entries(self, blocks: Sequence[int]) -> list[int]:
        return [count * step for count, step in zip(blocks, self.steps, strict=True)]
