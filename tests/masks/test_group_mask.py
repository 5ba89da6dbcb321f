"""The mask of one group: it follows its scores, and not those of a copy."""

from __future__ import annotations

import copy

import torch

from robust_plugin.masks.group_mask import GroupMask


def top(scores: torch.Tensor, count: int) -> set[int]:
    return set(scores.detach().abs().flatten().sort(descending=True).indices[:count].tolist())


def ones(group: GroupMask) -> set[int]:
    return set(group.mask.flatten().nonzero().flatten().tolist())


def test_the_mask_follows_scores_that_were_written_between_steps() -> None:
    torch.manual_seed(0)
    group = GroupMask(torch.randn(40), 7, learned=True)
    group.learning = True
    before = ones(group)
    with torch.no_grad():
        group.scores.copy_(torch.randn(40))
    group(torch.float32)
    assert ones(group) == top(group.scores, 7) != before


def test_a_fixed_mask_stays_whatever_happens_to_its_scores() -> None:
    group = GroupMask(torch.randn(40), 7)
    before = ones(group)
    with torch.no_grad():
        group.scores.add_(torch.randn(40))
    group(torch.float32)
    assert ones(group) == before


def test_only_learned_scores_are_parameters() -> None:
    assert dict(GroupMask(torch.rand(3), 1).named_parameters()) == {}
    learned = GroupMask(torch.rand(3), 1, learned=True, rate=0.5)
    assert set(dict(learned.named_parameters())) == {"scores", "rate"}
    assert not dict(learned.named_buffers())


def test_bits_and_scores_survive_a_change_of_dtype() -> None:
    group = GroupMask(torch.rand(30), 4, learned=True)
    group.learning = True
    before, scores = group.mask.clone(), group.scores.detach().clone()
    group.half()
    group(torch.float16)
    assert group.scores.dtype == torch.float32 and torch.equal(group.scores, scores)
    assert group.mask.dtype == torch.bool and torch.equal(group.mask, before)


def test_an_average_takes_the_masks_of_its_original_and_a_snapshot_does_not() -> None:
    torch.manual_seed(3)
    group = GroupMask(torch.randn(40), 7, learned=True)
    group.learning = True
    snapshot, average = copy.deepcopy(group), copy.deepcopy(group)
    again = copy.deepcopy(average)
    first = ones(group)
    with torch.no_grad():
        group.scores.copy_(torch.randn(40))
        for other in (average, again):
            other.scores.lerp_(group.scores, 0.1)
    for each in (group, snapshot, average, again):
        each(torch.float32)
    assert ones(average) == ones(again) == ones(group) != first
    assert ones(snapshot) == first
    snapshot.load_state_dict(group.state_dict())
    snapshot(torch.float32)
    assert ones(snapshot) == ones(group)
