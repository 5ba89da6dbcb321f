"""The entries that stay, against masks applied by hand."""

import torch
from wide_network import A, B, C, Wide, wide_groups

from robust_plugin.channels.kept_entries import kept_entries, select


def test_kept_entries_against_the_masks():
    model = Wide(A, B, C)
    masks = [
        torch.tensor([1, 0, 1, 0]),
        torch.tensor([0, 1, 1, 1, 0, 1]),
        torch.tensor([1, 1, 0, 0, 1]),
    ]
    masks = [mask.bool() for mask in masks]
    kept = kept_entries(wide_groups(model), masks)
    small = Wide(2, 4, 3)
    for name, parameter in model.named_parameters():
        layer, _, key = name.rpartition(".")
        cut = select(parameter, kept.get((layer, key), {}))
        assert cut.shape == small.get_parameter(name).shape
    expected = model.both.weight[masks[2]][:, torch.cat(masks[:2])]
    assert torch.equal(select(model.both.weight, kept["both", "weight"]), expected)
    head = torch.cat([masks[2], masks[0]]).repeat_interleave(4)
    assert torch.equal(
        select(model.head.weight, kept["head", "weight"]), model.head.weight[:, head]
    )


def test_nothing_masked_keeps_every_entry():
    model = Wide(A, B, C)
    kept = kept_entries(wide_groups(model), [torch.ones(n, dtype=torch.bool) for n in (A, B, C)])
    for name, parameter in model.named_parameters():
        layer, _, key = name.rpartition(".")
        assert torch.equal(select(parameter, kept.get((layer, key), {})), parameter)
    assert set(kept["again", "weight"]) == {0, 1} and set(kept["head", "weight"]) == {1}
    assert ("head", "bias") not in kept  # no channel runs through the outputs
