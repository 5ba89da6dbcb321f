"""Checks of groups that users make, and the groups that an n:m pattern fits."""

import pytest
import torch
from convnet_channels import channel_groups, convnet  # noqa: E402
from torch import nn

from robust_plugin import Group, HydraPruner, Member, weight_groups
from robust_plugin.masks.group_checks import check_channels, check_groups, divisible
from robust_plugin.masks.select import parse_pattern


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: [Group((Member(m[3], "3", "weight", dim=1),), channels=7)], "3.weight"),
        (
            lambda m: [
                Group((Member(m[6], "6", "weight", dim=1, index=torch.arange(80) % 7),), channels=5)
            ],
            "6.weight",
        ),
        (
            lambda m: [
                Group((Member(m[3], "3", "weight", dim=1),), channels=6),
                Group((Member(m[3], "3", "weight"),)),
            ],
            "3.weight",
        ),
        (lambda m: [Group((Member(nn.Linear(4, 2), "9", "weight"),))], "9.weight"),
        (lambda m: [Group((Member(m[3], "0", "weight"),))], "0.weight is no parameter"),
        (lambda m: [Group((Member(m[5], "5", "weight", dim=1),), channels=5)], "5.weight"),
        (lambda m: [Group((Member(m[3], "3", "weight", dim=4),), channels=6)], "3.weight"),
        (
            lambda m: [Group((Member(m[3], "3", "weight"), Member(m[6], "6", "weight")))],
            "6.weight of shape",
        ),
        (lambda m: [], "at least one group"),
    ],
)
def test_groups_that_do_not_fit_leave_the_model_alone(break_it, says):
    model = convnet()
    classes = [type(layer) for layer in model]
    with pytest.raises(ValueError, match=says):
        HydraPruner(model, density=0.5, groups=break_it(model))
    assert [type(layer) for layer in model] == classes
    assert set(model.state_dict()) == set(convnet().state_dict())


def test_groups_and_exclude_together_are_refused():
    model = convnet()
    with pytest.raises(ValueError, match="exclude"):
        HydraPruner(model, density=0.5, groups=channel_groups(model), exclude=["6"])


def test_groups_that_fit_are_returned():
    model = convnet()
    groups = channel_groups(model)
    assert check_groups(model, groups) == tuple(groups)
    # Two groups may mask one dimension, as behind a concatenation, but not the same entries.
    halves = [torch.tensor([0, 1, 2, -1, -1, -1]), torch.tensor([-1, -1, -1, 0, 1, 2])]
    both = [Group((Member(model[3], "3", "weight", 1, half),), 3) for half in halves]
    assert check_groups(model, both) == tuple(both)
    with pytest.raises(ValueError, match="3.weight has a mask already"):
        check_groups(model, [both[0], both[0]])


def test_groups_without_coupled_parameters_are_no_channels_to_remove():
    model = convnet()
    made = tuple(Member(model[0], "0", key, 0) for key in ("weight", "bias"))
    check_channels([Group((Member(model[3], "3", "weight", 1),), 6, "conv1", made)])
    with pytest.raises(ValueError, match="group 3.weight is not of channels that can be removed"):
        check_channels(weight_groups(model)[1:2])


def test_a_pattern_fits_weights_whose_rows_it_divides():
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 12), nn.Conv2d(12, 2, 3))
    groups = weight_groups(model)
    fits, dense = divisible(groups, parse_pattern("2:4"))
    assert [g.name for g in fits] == ["0.weight", "2.weight"] and dense == ("1.weight",)
    assert divisible(groups, None) == (groups, ())
    with pytest.raises(ValueError, match="pattern 2:5 fits no layer; .* divisible by 5"):
        divisible(groups, parse_pattern("2:5"))
