"""Rankings of units against sorted scores, and counts against torch-pruning's formula."""

from types import SimpleNamespace

import pytest
import torch
from wide_network import A, B, C, Wide, randomised, wide_groups

from robust_plugin import MagnitudePruner
from robust_plugin.channels.ranking import (
    Ranking,
    check_counts,
    learned_ratios,
    rankings,
    zero_scheduled_gradients,
)
from robust_plugin.masks.group_mask import GroupMask


def pruned():
    model = randomised(Wide(A, B, C))
    return MagnitudePruner(
        model, groups=wide_groups(model), rates={"left": 0.5, "right": 0.5, "both": 0.6}
    )


def test_ranks_follow_the_magnitude_of_the_scores():
    mask = GroupMask(torch.tensor([[0.1], [-3.0], [2.0], [0.5]]), 2)
    ranking = Ranking(SimpleNamespace(size=4), mask)
    assert ranking.ranks.tolist() == [1, 4, 3, 2]
    assert ranking.alive(2).tolist() == mask.mask.flatten().tolist() == [False, True, True, False]
    assert ranking.alive(3).tolist() == [False, True, True, True]
    ties = Ranking(SimpleNamespace(size=3), GroupMask(torch.ones(3, 1), 1))
    assert sorted(ties.ranks.tolist()) == [1, 2, 3]
    assert ties.alive(1).tolist() == ties.mask.mask.flatten().tolist()


def test_the_ratio_ends_at_the_count_for_every_size():
    for size in range(1, 130):
        for kept in range(1, size + 1):
            group, mask = SimpleNamespace(size=size), SimpleNamespace(kept=kept)
            ranking = Ranking(group, mask)
            assert int(size * (1 - ranking.ratio)) == kept == ranking.at(3, 3)
            assert ranking.at(0, 3) == size
            assert size >= ranking.at(1, 3) >= ranking.at(2, 3) >= kept


def test_ratios_of_all_layers_by_hand():
    pruner = pruned()
    ratios = learned_ratios(pruner)
    model = pruner.model
    kept = {model.left: 2, model.depthwise: 2, model.right: 3, model.both: 3, model.again: 3}
    assert set(ratios) == {*kept, model.head} and ratios[model.head] == 0
    for layer, count in kept.items():
        n = len(layer.weight)
        assert int(n * (1 - ratios[layer])) == count


def test_importance_is_the_rank_of_each_channel():
    pruner = pruned()
    found = rankings(pruner)
    ranking, member = found[pruner.model.right]
    importance = ranking.importance(member)
    scores = ranking.mask.scores.flatten().abs()
    assert importance.argsort().tolist() == scores.argsort().tolist()
    assert sorted(importance.tolist()) == pytest.approx([i / B for i in range(1, B + 1)])


def test_gradients_of_what_reads_channels_scheduled_for_removal():
    pruner = pruned()
    left, right, both = (mask.mask.flatten() for mask in pruner.masks)
    pruner.finalize()
    model = pruner.model
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    zero_scheduled_gradients(pruner)
    assert torch.equal(model.both.weight.grad[0].flatten() == 1, torch.cat([left, right]))
    assert torch.equal(model.again.weight.grad[:, :, 0, 0][0] == 1, both)
    head = torch.cat([both, left]).repeat_interleave(4)
    assert torch.equal(model.head.weight.grad[0] == 1, head)
    for name in ("left.weight", "norm.weight", "depthwise.weight", "head.bias"):
        assert bool((model.get_parameter(name).grad == 1).all())


def test_counts_that_a_step_should_have_left():
    pruner = pruned()
    pruner.finalize()
    check_counts(pruner, 0, 2)  # nothing is removed before the first step
    with pytest.raises(ValueError, match="left keeps 4 units of group left after step 2 of 2, not"):
        check_counts(pruner, 2, 2)


def test_channels_that_were_cut_by_another_are_named():
    pruner = pruned()
    pruner.finalize()
    pruner.model.right.weight = torch.nn.Parameter(torch.ones(B + 1, 1, 3, 3))
    with pytest.raises(ValueError, match="right.weight has 7 channels, which are no 1 for each"):
        check_counts(pruner, 0, 2)


def test_groups_of_weights_are_refused(cnn):
    with pytest.raises(ValueError, match="group 0.weight is not of channels"):
        learned_ratios(MagnitudePruner(cnn(), 0.5))
