"""A network whose channels run through a concatenation, a sum and a depthwise layer, with groups.

Groups and removal are written down by hand, so that tests need no library that traces networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust_plugin import Group, Member

# Channels of the left stem, the right stem, and the layer that reads both.
A, B, C = 4, 6, 5


class Wide(nn.Module):
    """Two stems of a and b channels, read side by side, by a depthwise layer and by a sum."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, a, 3, padding=1)
        self.right = nn.Conv2d(1, b, 3, padding=1)
        self.norm = nn.BatchNorm2d(a + b)
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.both = nn.Conv2d(a + b, c, 1)
        self.again = nn.Conv2d(c, c, 3, padding=1)
        self.head = nn.Linear(4 * (c + a), 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        hidden = self.both(self.norm(torch.cat([left, right], 1)).relu())
        hidden = hidden + self.again(hidden.relu())
        out = torch.cat([hidden, self.depthwise(left)], 1)
        return self.head(F.adaptive_avg_pool2d(out.relu(), 2).flatten(1))


def wide_groups(model):
    """The groups of a Wide(A, B, C), written down by hand."""
    m, none = model, torch.tensor([-1])
    left = torch.cat([torch.arange(A), none.repeat(B)])
    right = torch.cat([none.repeat(A), torch.arange(B)])
    positions = torch.arange(C + A).repeat_interleave(4)
    in_head = torch.where(positions < C, positions, -1)
    left_in_head = torch.where(positions >= C, positions - C, -1)

    def norm(index):
        return tuple(Member(m.norm, "norm", key, 0, index) for key in ("weight", "bias"))

    def made(name):
        layer = model.get_submodule(name)
        return tuple(Member(layer, name, key, 0) for key in ("weight", "bias"))

    return (
        Group(
            (Member(m.both, "both", "weight", 1, left),
             Member(m.head, "head", "weight", 1, left_in_head)),
            A, "left", (*made("left"), *made("depthwise"), *norm(left)),
        ),
        Group((Member(m.both, "both", "weight", 1, right),), B, "right",
              (*made("right"), *norm(right))),
        Group(
            (Member(m.again, "again", "weight", 1), Member(m.head, "head", "weight", 1, in_head)),
            C, "both", (*made("both"), *made("again")),
        ),
    )  # fmt: skip


def sizes(model):
    """Parameters and multiply-adds of one example, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 1, 8, 8))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def replay(model, inputs, history):
    """Remove the channels of a history from a Wide(A, B, C), in place and by hand."""
    kept = {"left": torch.ones(A), "right": torch.ones(B), "both": torch.ones(C)}
    for layer, makes, gone in history:
        assert makes
        kept[layer][list(gone)] = 0
    left, right, both = (kept[name].bool() for name in ("left", "right", "both"))
    beside = torch.cat([left, right])
    head = torch.cat([both, left]).repeat_interleave(4)
    _cut(model.left, out=left)
    _cut(model.right, out=right)
    _cut(model.norm, out=beside)
    _cut(model.depthwise, out=left)
    _cut(model.both, out=both, read=beside)
    _cut(model.again, out=both, read=both)
    _cut(model.head, read=head)
    model.depthwise.groups = model.depthwise.in_channels = int(left.sum())
    model.head.in_features = int(head.sum())


def _cut(layer: nn.Module, out: Tensor | None = None, read: Tensor | None = None) -> None:
    for tensors in (layer._parameters, layer._buffers):
        for key, tensor in tensors.items():
            if tensor.dim() and out is not None:
                tensor = tensor[out]
            if tensor.dim() > 1 and read is not None:
                tensor = tensor[:, read]
            old = tensors[key]
            tensors[key] = (
                nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad)
                if isinstance(old, nn.Parameter)
                else tensor.clone()
            )
    for mask, names in ((out, ("out_channels", "num_features")), (read, ("in_channels",))):
        for name in names:
            if mask is not None and hasattr(layer, name):
                setattr(layer, name, int(mask.sum()))


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with norms that are no identity."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, 0.1, 0.6)
    return model.eval()
