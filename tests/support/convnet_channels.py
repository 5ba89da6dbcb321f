"""A small network with its two groups of channels, written down by hand."""

import torch
from torch import nn

from robust_plugin import Group, Member


def convnet() -> nn.Sequential:
    """conv1 -> bn -> relu -> conv2 -> relu -> flatten -> fc."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )
    model[1].running_mean.normal_(), model[1].bias.data.normal_()
    return model


def channel_groups(model: nn.Sequential) -> list[Group]:
    """The channels that conv2 and fc read."""
    flattened = torch.arange(5).repeat_interleave(16)  # 4x4 positions of each channel
    return [
        Group((Member(model[3], "3", "weight", dim=1),), channels=6, name="conv1 channels"),
        Group((Member(model[6], "6", "weight", dim=1, index=flattened),), channels=5),
    ]
