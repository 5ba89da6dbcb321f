"""Ramps against values by hand."""

import pytest

from robust_plugin import Ramp


@pytest.mark.parametrize(
    ("share", "linear", "smoothed"),
    [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.3, 0.25, 0.0769), (0.4, 0.5, 0.3846), (0.6, 1.0, 1.0),
     (1.0, 1.0, 1.0)],
)  # fmt: skip
def test_ramps(share, linear, smoothed):
    """The smoothed one at a quarter: c / 4^4 with c = 4^4 / (1 + 4 * 3) is 1/13."""
    assert Ramp(0.2, 0.6)(share) == pytest.approx(linear)
    assert Ramp(0.2, 0.6, "smoothed")(share) == pytest.approx(smoothed, abs=1e-4)


def test_the_smoothed_ramp_has_no_corner_and_no_jump():
    ramp, h = Ramp(0.0, 1.0, "smoothed"), 1e-6
    slopes = [(ramp(t + h) - ramp(t - h)) / (2 * h) for t in (0.2499, 0.2501, 0.5, 0.9)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2)
    assert slopes[1] == pytest.approx(slopes[3], rel=1e-3)
    assert Ramp(0.3, 0.3)(0.29) == 0 and Ramp(0.3, 0.3)(0.3) == 1 and Ramp(0, 0)(0.0) == 1


def test_epochs_become_shares_of_the_phase():
    assert [Ramp(0.0, 0.5).at(epoch, 40) for epoch in (0, 5, 20, 40)] == [0, 0.25, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(0.5, 0.2), "a ramp from 0.5 to 0.2"),
        (lambda: Ramp(shape="cosine"), "shape is 'cosine'; legal: linear, smoothed"),
        (lambda: Ramp().at(11, 10), "progress to epoch 11 of 10; legal: 0 <= epoch <= epochs"),
        (lambda: Ramp().at(0, 0), "progress to epoch 0 of 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
