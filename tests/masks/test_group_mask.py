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


def test_the_mask_of_a_copy_stays_while_an_average_moves_its_scores() -> None:
    group = GroupMask(torch.randn(40), 7, learned=True)
    group.learning = True
    average = copy.deepcopy(group)
    with torch.no_grad():
        average.scores.lerp_(torch.randn(40), 0.5)
    average(torch.float32)
    assert ones(average) == ones(group)


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
