"""What is refused before a bound counts as a proof."""

import math

import pytest
import torch

from robust_plugin import IBP, ThreatModel, ibp_margins
from robust_plugin.certificates.checks import (
    check_bounds,
    checked_margins,
    proved,
    refuse_apart,
)


def test_nan_and_rounding_prove_nothing():
    y = torch.tensor([0, 0, 0])
    margins = torch.tensor([[0.0, math.nan, 1.0], [0.0, 1e-6, 1.0], [0.0, 0.9, 1e6]])
    assert proved(margins, y).tolist() == [False, False, False]
    assert proved(torch.tensor([[0.0, 0.1, 2.0]]), y[:1]).tolist() == [True]


def test_nan_weights_raise(cnn, batch, threat):
    model = cnn()
    model[0].weight.data[0] = math.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        IBP(threat)(model, *batch)


def test_bounds_of_another_network_raise(cnn, batch, threat):
    def of_twice_the_logits(m, x, y, t):
        return 2 * ibp_margins(m, x, y, t)

    def too_high(m, x, y, t):
        return ibp_margins(m, x, y, t) + (t.eps > 0) * 9

    with pytest.raises(ValueError, match="of another network"):
        checked_margins(of_twice_the_logits, cnn(), *batch, threat)
    with pytest.raises(ValueError, match="above the margin of the network itself"):
        checked_margins(too_high, cnn(), *batch, threat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_proves_nothing(cnn, batch, threat, dtype):
    with pytest.raises(ValueError, match="whose rounding is larger than margins"):
        IBP(threat)(cnn().to(dtype), batch[0].to(dtype), batch[1])


def test_bounds_that_are_unsound_or_of_another_network_fail_the_self_check(cnn, batch):
    model, (x, y) = cnn().eval(), (batch[0][:2], batch[1][:2])
    small = ThreatModel("Linf", eps=0.02)

    def apart(m, x, y, t):
        return ibp_margins(m, x, y, t) + 0.01

    def blind(m, x, y, t):  # what a method gives that forgets the ball
        return ibp_margins(m, x, y, ThreatModel("Linf", eps=0.0))

    given = {"reference": ibp_margins, "threat": small, "name": "mine"}
    check_bounds(ibp_margins, model, x, y, **given)
    with pytest.raises(ValueError, match="mine at eps = 0 is .* away from what it should be"):
        check_bounds(apart, model, x, y, **given)
    with pytest.raises(ValueError, match="mine is unsound on this network"):
        check_bounds(blind, model, x, y, **given)


def test_nan_agrees_with_nothing():
    margins = torch.tensor([[0.0, 1.0]])
    refuse_apart(margins, margins + 1e-6, "mine")
    with pytest.raises(ValueError, match="mine is nan"):
        refuse_apart(torch.full_like(margins, torch.nan), margins, "mine")
