"""Every objective: labels of any integer type, and labels and outputs that are refused."""

import math

import pytest
import torch
from torch import nn

from robust_plugin import (
    Free,
    ThreatModel,
    adversarial,
    benign,
    certified,
    gaussian,
    ibp_margins,
    mart,
    mixtrain,
    pgd,
    smoothadv,
    stability,
    trades,
)

THREAT, L2 = ThreatModel("Linf", eps=0.1), ThreatModel("L2", eps=0.5)


ALL = {
    "benign": lambda: benign,
    "adversarial": lambda: adversarial(pgd(THREAT, steps=2)),
    "adversarial by a function": lambda: adversarial(lambda model, x, y: 0.9 * x),
    "trades": lambda: trades(THREAT, steps=2),
    "mart": lambda: mart(THREAT, steps=2),
    "free": lambda: Free(THREAT),
    "certified": lambda: certified(THREAT, kappa=(0.5, 0.5)),
    "mixtrain": lambda: mixtrain(THREAT, bounds=ibp_margins, probability=1.0),
    "gaussian": lambda: gaussian(sigma=0.1),
    "stability": lambda: stability(sigma=0.1),
    "smoothadv": lambda: smoothadv(L2, sigma=0.1, steps=2),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("name", ALL)
def test_labels_of_any_integer_dtype(cnn, batch, name, dtype):
    model, (x, y), losses = cnn().eval(), batch, []
    for labels in (y, y.to(dtype)):
        torch.manual_seed(0)
        losses.append(ALL[name]()(model, x, labels).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("label", [-100, -1, 10])
@pytest.mark.parametrize("name", ALL)
def test_a_label_that_is_no_class_is_refused(cnn, batch, name, label):
    """Of torch's ignore_index too: no point may be left out without a word."""
    model, (x, y) = cnn(), batch
    y = y.clone()
    y[3] = label
    with pytest.raises(ValueError, match="labels are torch.int64 from .*; legal: integers 0 to 9"):
        ALL[name]()(model, x, y)


@pytest.mark.parametrize("name", ALL)
def test_labels_of_another_shape_or_kind_are_refused(cnn, batch, name):
    model, (x, y) = cnn(), batch
    for wrong in (y[:, None], y.float(), y[:5]):
        with pytest.raises(ValueError, match="labels|inputs"):
            ALL[name]()(model, x, wrong)


@pytest.mark.parametrize("name", ALL)
def test_a_network_of_one_output_is_refused(batch, name):
    """All labels 0 would be right, and a divergence between distributions of one class is 0."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), batch[0]
    with pytest.raises(ValueError, match=r"one output per point; .* torch.cat\(\[-z, z\], 1\)"):
        ALL[name]()(model, x, torch.zeros(16, dtype=torch.long))


class Overflows(nn.Module):
    """Logits of half precision that overflow, as a forward pass under a large scale may."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 10))

    def forward(self, x):
        return (x.flatten(1) @ self.weight) * torch.inf


@pytest.mark.parametrize("name", ["benign", "free", "adversarial by a function"])
def test_a_loss_that_overflows_is_left_to_the_scaler(batch, name):
    assert not math.isfinite(ALL[name]()(Overflows(), *batch).item())
