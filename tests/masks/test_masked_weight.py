"""The product of one weight and its mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.masked_weight import MaskedWeight, placed


def test_a_mask_of_channels_is_placed_as_by_hand() -> None:
    mask = torch.tensor([True, False, True])
    weight = torch.rand(2, 4, 3, 3)
    index = torch.tensor([2, -1, 1, 1])
    found = weight * placed(mask, 1, index, weight.dim())
    for position, channel in enumerate(index.tolist()):
        kept = True if channel < 0 else bool(mask[channel])
        wanted = weight[:, position] if kept else torch.zeros(2, 3, 3)
        assert torch.equal(found[:, position], wanted)
    assert placed(mask, 0, None, 2).shape == (3, 1)
    assert placed(mask, None, None, 1) is mask


def test_a_product_that_is_read_and_written_is_noticed() -> None:
    masked = MaskedWeight(GroupMask(torch.rand(6), 3))
    weight = torch.rand(6)
    for write, noticed in ((lambda t: t, False), (lambda t: t.data.mul_(2), True)):
        write(masked.lend(masked(weight)))
        assert masked.was_written() is noticed
        assert masked.was_written() is False


def test_zeros_are_written_without_a_new_version_of_the_parameter() -> None:
    group = GroupMask(torch.rand(6), 2)
    masked, parameter = MaskedWeight(group), nn.Parameter(torch.rand(6))
    version = parameter._version
    masked.write_zeros(parameter)
    assert parameter._version == version
    assert torch.equal(parameter == 0, ~group.mask)


def test_a_state_of_another_parameter_is_refused() -> None:
    group = GroupMask(torch.rand(6), 2)
    state = MaskedWeight(group, "in_proj_weight").get_extra_state()
    with pytest.raises(ValueError, match="the state masks in_proj_weight along dimension None"):
        MaskedWeight(group).set_extra_state(state)
