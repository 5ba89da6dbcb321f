"""ThreatModel: projections against loops, and what its checks refuse."""

import math

import pytest
import torch

from robust_plugin import ThreatModel


def test_bad_norm_and_bounds():
    with pytest.raises(ValueError, match="'L7'; legal: Linf, L2"):
        ThreatModel("L7", eps=0.1)
    for low, high in [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0)]:
        with pytest.raises(ValueError, match="low must be below high"):
            ThreatModel("Linf", eps=0.1, low=low, high=high)


def test_is_a_value():
    threat = ThreatModel("Linf", eps="8/255")
    assert threat == ThreatModel("Linf", eps=8 / 255)
    assert len({threat, ThreatModel("Linf", eps=8 / 255)}) == 1
    with pytest.raises(AttributeError):
        threat.eps = 1.0
    assert str(threat) == "Linf eps=8/255"


def test_linf_projection_equals_a_loop():
    threat = ThreatModel("Linf", eps=0.2, low=-1.0, high=0.5)
    x = torch.rand(4, 3, 5, dtype=torch.float64) * 1.5 - 1
    x_adv = x + torch.randn_like(x)
    projected = threat.project(x_adv, x)
    for got, a, b in zip(projected.flatten(), x_adv.flatten(), x.flatten(), strict=True):
        wanted = min(max(float(a), float(b) - 0.2), float(b) + 0.2)
        assert float(got) == pytest.approx(min(max(wanted, -1.0), 0.5), abs=1e-15)


def test_l2_projection_ball_then_box():
    threat = ThreatModel("L2", eps=0.5)
    x = torch.rand(6, 2, 3, dtype=torch.float64)
    delta = torch.randn_like(x) * torch.tensor([0.01, 0.1, 1, 10, 0.2, 0]).view(-1, 1, 1)
    projected = threat.project(x + delta, x)
    for i in range(6):
        length = math.sqrt(sum(float(d) ** 2 for d in delta[i].flatten()))
        wanted = x[i] + delta[i] * (min(1.0, 0.5 / length) if length else 1.0)
        assert torch.allclose(projected[i], wanted.clamp(0, 1), atol=1e-12)
    assert float(threat.norms(projected - x).max()) <= 0.5 + 1e-12


def test_norms_by_hand():
    delta = torch.tensor([[[3.0, -4.0]], [[0.0, 1.0]]])
    assert ThreatModel("L2", eps=1).norms(delta).tolist() == [5.0, 1.0]
    assert ThreatModel("Linf", eps=1).norms(delta).tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((2, 3), 1.5), r"\[1.5, 1.5\], outside the threat model's \[0, 1\]"),
        (torch.full((2, 3), -0.1), r"\[-0.1, -0.1\], outside"),
        (torch.full((2, 3), torch.nan), "nan"),
        (torch.full((2, 3), torch.inf), "inf"),
        (torch.zeros(2, 3, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(0, 3), "empty"),
    ],
)
def test_bad_inputs(x, says):
    with pytest.raises(ValueError, match=says):
        ThreatModel("Linf", eps=0.1).check_inputs(x)


def test_infinite_inputs_are_refused_in_an_unbounded_range():
    threat = ThreatModel("Linf", eps=0.1, low=-math.inf, high=math.inf)
    threat.check_inputs(torch.tensor([[-1e30, 1e30]]))
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="inputs span"):
            threat.check_inputs(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_result_inside_the_ball_passes_and_outside_raises(norm):
    threat = ThreatModel(norm, eps=0.1)
    x = torch.full((3, 4), 0.5)
    direction = torch.zeros(3, 4)
    direction[1, 2] = 1.0
    threat.check_result(x + 0.1 * direction, x)
    with pytest.raises(ValueError, match=f"moved a point by 0.102 in {norm}, beyond eps = 0.1"):
        threat.check_result(x + 0.102 * direction, x)
    with pytest.raises(ValueError, match=r"shape \(3, 5\)"):
        threat.check_result(torch.zeros(3, 5), x)
    with pytest.raises(ValueError, match="NaN or infinite"):
        threat.check_result(x * torch.nan, x)
    with pytest.raises(ValueError, match="outside"):
        threat.check_result(x + 0.55, x + 0.49)


def test_an_eps_wider_than_the_box_was_meant_as_a_fraction():
    for eps in (8, "8"):
        with pytest.raises(ValueError, match="more than the whole box"):
            ThreatModel("Linf", eps=eps)
    assert ThreatModel("Linf", eps=1).eps == 1 and ThreatModel("L2", eps=8).eps == 8
    assert ThreatModel("Linf", eps=8, low=0, high=255).eps == 8


def test_what_covers_what():
    ball = ThreatModel("Linf", 0.1)
    assert ball.covers(ball) and ball.covers(ThreatModel("Linf", 0.05))
    assert ball.covers(ThreatModel("L2", 0.1)) and ball.covers(ThreatModel("L1", 0.1))
    assert not ball.covers(ThreatModel("Linf", 0.11))
    assert not ball.covers(ThreatModel("Linf", 0.1, low=-1))
    assert not ThreatModel("L1", 0.1).covers(ThreatModel("L2", 0.05))


@pytest.mark.parametrize(("dtype", "room"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_has_the_room_of_its_rounding(dtype, room):
    ball, x = ThreatModel("Linf", "8/255"), torch.full((1, 4), 0.75, dtype=dtype)
    ball.check_result(x + ball.eps, x)
    with pytest.raises(ValueError, match="beyond eps"):
        ball.check_result((x + ball.eps + 2 * room).to(dtype), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_direction_of_a_gradient_of_any_size(dtype):
    threat = ThreatModel("L2", 1)
    grad = torch.tensor([[3.0, 4.0], [3e-7, 4e-7], [0.0, 0.0]]).to(dtype)
    wanted = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(threat.direction(grad).float(), wanted, rtol=0.1, atol=0.0)


def test_a_narrowed_box_holds_every_point_of_every_ball() -> None:
    x = torch.tensor([[0.5, -3.0], [2.0, 1.0]])
    wide = ThreatModel("L2", 0.5, low=-1e6, high=math.inf)
    narrow = wide.narrowed(x, reach=0.5)
    assert (narrow.norm, narrow.eps, narrow.low, narrow.high) == ("L2", 0.5, -3.5, 2.5)
    one_side = ThreatModel("Linf", 0.5, low=-3.25, high=1e4).narrowed(x, reach=0.5)
    assert (one_side.low, one_side.high) == (-3.25, 2.5)
    unit = ThreatModel("Linf", 0.1)
    assert unit.narrowed(torch.rand(5, 4), reach=0.1) is unit


def test_a_step_out_of_a_wide_ball_is_refused() -> None:
    """The slack for rounding is that of the inputs, not of the bounds of the box."""
    x = torch.zeros(2, 3)
    for width in (1e6, math.inf):
        threat = ThreatModel("Linf", 0.1, low=-width, high=width)
        threat.check_result(x + 0.1, x)
        with pytest.raises(ValueError, match="moved a point by 0.15 in Linf"):
            threat.check_result(x + 0.15, x)
        with pytest.raises(ValueError, match="NaN or infinite values for 2 of 2 points"):
            threat.check_result(x + math.inf, x)


@pytest.mark.parametrize(
    ("norm", "eps", "meant"),
    [("Linf", "8/255", "8"), ("Linf", 16 / 255, "16"), ("L2", 0.5, "127.5"), ("L1", 12, "3060")],
)
def test_a_radius_of_the_unit_box_among_grey_levels_is_refused(
    norm: str, eps: float | str, meant: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"too small for grey levels; .* give {meant} for a radius"
    ):
        ThreatModel(norm, eps, low=0, high=255)
    assert ThreatModel(norm, float(meant), low=0, high=255).eps == float(meant)
    assert ThreatModel(norm, 0, low=0, high=255).eps == 0


def test_bounds_are_one_number_each() -> None:
    threat = ThreatModel("Linf", 0.1, low=torch.tensor(-1.0), high=torch.tensor([2.0]))
    assert (threat.low, threat.high) == (-1.0, 2.0) and type(threat.low) is float
    for low in (torch.zeros(3), None, "a", [0.0, 0.0]):
        with pytest.raises(ValueError, match=r"^low is .*; legal: one number"):
            ThreatModel("Linf", 0.1, low=low)
    with pytest.raises(ValueError, match="eps is tensor"):
        ThreatModel("Linf", torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="low must be below high"):
        ThreatModel("Linf", 0.1, low=math.nan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_slack_of_dark_images_is_that_of_the_points_reached(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, dtype=dtype)
    ThreatModel("Linf", 0.3).check_result(x + 0.3, x)
