"""Each layer's rule, and layers without one."""

import pytest
import torch
from torch import nn

from robust_plugin import (
    ibp_margins,
)


def sequential(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(128, 10))


def test_dropout_at_rest_is_nothing(batch, threat):
    model = sequential(nn.Dropout(0.5), nn.Dropout2d(0.0)).eval()
    plain = nn.Sequential(model[0], *model[3:])
    assert torch.equal(ibp_margins(model, *batch, threat), ibp_margins(plain, *batch, threat))


BAD = [
    (sequential(nn.GELU()), "layer '1' is GELU.*no interval bounds"),
    (sequential(nn.GroupNorm(1, 2)), "layer '1' is GroupNorm"),
    (sequential(nn.LeakyReLU(-0.1)), "layer '1' is LeakyReLU"),
    (sequential(nn.Dropout(0.5)), "layer '1' drops at random"),
    (sequential(nn.BatchNorm2d(2, track_running_stats=False)), "layer '1' normalises by each"),
    (nn.Sequential(nn.Flatten(0), nn.Linear(64, 10)), "'0' flattens dimensions 0 to -1"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_what_has_no_rule_raises_by_its_name(model, message, batch, threat):
    with pytest.raises(ValueError, match=message) as caught:
        ibp_margins(model, *batch, threat)
    assert str(caught.value).count("\n") <= 2
