"""Rules of functions and tensor methods, and operations without one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import (
    ThreatModel,
    ibp_margins,
)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.last = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))

    def forward(self, x):
        x = x.flatten(1)
        a, b = torch.relu(self.one(x)), torch.sigmoid(self.two(x))
        return self.last(torch.cat([a * self.scale + 1 - b, a - b / self.scale.abs().amax()], 1))


def test_sums_differences_and_constants_equal_interval_arithmetic_by_hand():
    model = Branches().double()
    x, y = torch.rand(2, 1, 2, 2).double(), torch.tensor([0, 2])
    found = ibp_margins(model, x, y, ThreatModel("Linf", eps=0.1))
    low, high = (x - 0.1).clamp(0, 1).flatten(1), (x + 0.1).clamp(0, 1).flatten(1)

    def linear(layer, low, high):
        plus, minus = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        bias = layer.bias
        return low @ plus.T + high @ minus.T + bias, high @ plus.T + low @ minus.T + bias

    a = [v.relu() for v in linear(model.one, low, high)]
    b = [v.sigmoid() for v in linear(model.two, low, high)]
    s = model.scale
    scaled = [torch.minimum(a[0] * s, a[1] * s), torch.maximum(a[0] * s, a[1] * s)]
    low = torch.cat([scaled[0] + 1 - b[1], a[0] - b[1] / 2], 1)
    high = torch.cat([scaled[1] + 1 - b[0], a[1] - b[0] / 2], 1)
    for i in range(2):
        for j in range(3):
            row = model.last.weight[y[i]] - model.last.weight[j]
            total = (row.clamp(min=0) * low[i] + row.clamp(max=0) * high[i]).sum()
            total = total + model.last.bias[y[i]] - model.last.bias[j]
            assert found[i, j].item() == pytest.approx(total.item(), abs=1e-12)


class Calls(nn.Module):
    """A network with one call in its forward."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.last, self.call = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 10), call

    def forward(self, x):
        return self.last(self.call(self.conv(x)))


LEGAL = [
    lambda v: F.relu(v, inplace=True).flatten(1),
    lambda v: torch.flatten(v, start_dim=1),
    lambda v: F.dropout(v, training=False).flatten(1),
    lambda v: F.max_pool2d(v, 3, 1, 1).flatten(1),
    lambda v: F.avg_pool2d(v, 3, 1, 1).flatten(1),
    lambda v: (1 - v.tanh() * 3).flatten(1),
    lambda v: F.adaptive_avg_pool2d(v, 8).flatten(1),
    lambda v: torch.cat([v], 1).flatten(1),
    lambda v: v.mean((2, 3), keepdim=True).add(v).flatten(1),
]  # fmt: skip


@pytest.mark.parametrize("call", LEGAL)
def test_functions_have_rules_too(call, batch, highest_excess):
    model = Calls(call)
    threat = ThreatModel("Linf", eps=0.05)
    margins = ibp_margins(model, *batch, threat)
    assert highest_excess(model, *batch, threat, margins) <= 0
    logits = model(batch[0])
    exact = ibp_margins(model, *batch, ThreatModel("Linf", eps=0.0))
    assert torch.allclose(exact, logits.gather(1, batch[1][:, None]) - logits, atol=1e-5)


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


def sequential(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(128, 10))


BAD = [
    (sequential(Subclass(2, 2, 1)), "operation 'conv2d'"),
    (
        Calls(lambda v: v.view(v.size(0), -1)),
        r"'size' reshapes in its own code; bounds need flatten\(1\)",
    ),
    (Calls(lambda v: v.reshape(-1, 128)), r"reshapes in its own code; bounds need flatten\(1\)"),
    (Calls(lambda v: v.flatten(1).expand(v.shape)), r"reshapes in its own code"),
    (Calls(lambda v: v.mul(v).flatten(1)), "operation 'mul'"),
    (Calls(lambda v: v.softmax(1).flatten(1)), "operation 'softmax'"),
    (Calls(lambda v: v.mean(0).flatten(1)), "operation 'mean'"),
    (Calls(lambda v: F.dropout(v).flatten(1)), "operation 'dropout'"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_what_has_no_rule_raises_by_its_name(model, message, batch, threat):
    with pytest.raises(ValueError, match=message) as caught:
        ibp_margins(model, *batch, threat)
    assert str(caught.value).count("\n") <= 2
