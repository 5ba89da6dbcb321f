"""Noise of a batch that is computed in parts is the noise of the whole batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robust_plugin import ThreatModel, mixtrain, pgd, smoothadv, stability, trades
from robust_plugin.certificates.ibp import ibp_margins
from robust_plugin.objectives.by_noise import gaussian
from robust_plugin.runtime.random import (
    Share,
    drawing,
    few_of,
    happens,
    normal_like,
    seed_of,
    uniform_like,
)

LINF, L2 = ThreatModel("Linf", eps=0.1), ThreatModel("L2", eps=0.5)
X, Y = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def in_parts(parts: int, function: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[int, Tensor]]:
    """What each part of the batch gets, with its number of points."""
    found = []
    for part in range(parts):
        rows = range(part, len(X), parts)
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(100 + part)  # of no consequence
        with drawing(Share(rows, len(X), generator)):
            found.append((len(rows), function(X[rows].double(), Y[rows])))
    return found


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("draw", [normal_like, uniform_like, lambda x: uniform_like(x, -2.0, 3.0)])
def test_rows_are_those_of_the_whole_draw(parts: int, draw: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(5)
    whole = draw(X.double())
    ((_, alone),) = in_parts(1, lambda x, _: draw(x))
    assert torch.equal(alone, whole)  # what the global generator gives from the same seed
    for part, (_, rows) in enumerate(in_parts(parts, lambda x, _: draw(x))):
        assert torch.equal(rows, whole[part::parts])


def test_samples_of_a_point_stay_with_it() -> None:
    torch.manual_seed(5)
    whole = torch.randn(2, *X.shape, dtype=torch.float64)
    for part, (_, rows) in enumerate(in_parts(3, lambda x, _: normal_like(x, samples=2))):
        assert torch.equal(rows, whole[:, part::3])


def test_outside_and_for_other_points_the_global_generator_is_drawn_from() -> None:
    torch.manual_seed(1)
    expected = torch.randn(3, 2)
    torch.manual_seed(1)
    assert torch.equal(normal_like(torch.empty(3, 2)), expected)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    torch.manual_seed(1)
    with drawing(Share(range(4), 8, generator)):
        assert torch.equal(normal_like(torch.empty(3, 2)), expected)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "attack",
    [pgd(LINF, steps=2), pgd(L2, steps=2), pgd(LINF, loss="kl", steps=2, start="gaussian")],
    ids=["Linf", "L2", "kl"],
)
def test_attacks_start_at_the_rows_of_the_batch(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> None:
    model = network()
    ((_, whole),) = in_parts(1, lambda x, y: attack(model, x, y))
    for part, (_, rows) in enumerate(in_parts(3, lambda x, y: attack(model, x, y))):
        torch.testing.assert_close(rows, whole[part::3], rtol=0, atol=1e-12)


OBJECTIVES = {
    "trades": trades(LINF, steps=2),
    "stability": stability(sigma=0.2),
    "gaussian": gaussian(sigma=0.2),
    "smoothadv": smoothadv(L2, sigma=0.2, steps=2),
    "mixtrain": mixtrain(LINF, bounds=ibp_margins, points=4, probability=1.0),
    "mixtrain of more points than there are": mixtrain(
        LINF, bounds=ibp_margins, points=20, probability=1.0
    ),
    "mixtrain at times": mixtrain(LINF, bounds=ibp_margins, points=3, probability=0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_mean_over_parts_is_the_loss_of_the_batch(name: str, parts: int) -> None:
    model, objective = network(), OBJECTIVES[name]
    ((_, whole),) = in_parts(1, lambda x, y: objective(model, x, y))
    found = in_parts(parts, lambda x, y: objective(model, x, y))
    mean = sum(n * loss for n, loss in found) / len(X)
    torch.testing.assert_close(mean, whole, rtol=1e-9, atol=0)


def test_parts_agree_on_what_happens_and_share_the_few() -> None:
    for seed in range(20):
        agreed, rows = set(), []
        for part in range(3):
            generator = torch.Generator().manual_seed(seed)
            with drawing(Share(range(part, 10, 3), 10, generator)):
                agreed.add(happens(0.5))
                few, _ = few_of(len(range(part, 10, 3)), 4)
                rows += (few * 3 + part).tolist()
        assert len(agreed) == 1 and len(rows) == len(set(rows)) == 4


def test_near_seeds_are_unrelated_and_in_range() -> None:
    seeds = {seed_of(seed, name, epoch) for seed in range(9) for name in "ab" for epoch in range(9)}
    assert len(seeds) == 9 * 2 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 11) != seed_of(11, 1)
