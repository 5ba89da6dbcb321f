import random

import pytest
import torch
from torch import nn

from robust_plugin.masks import select
from robust_plugin.masks.attach import GroupMask, MaskedWeight, attach
from robust_plugin.masks.select import (
    StraightThrough,
    kept_count,
    most_kept,
    nm_mask,
    parse_pattern,
    topk_mask,
)


def by_sorting(scores: torch.Tensor, count: int) -> list[bool]:
    """The mask by brute force: the largest first, of equal ones the lower index."""
    magnitudes = [abs(v) for v in scores.flatten().tolist()]
    best = sorted(range(len(magnitudes)), key=lambda i: (-magnitudes[i], i))[:count]
    return [i in set(best) for i in range(len(magnitudes))]


@pytest.mark.parametrize("ties", [False, True])
def test_kept_count_and_mask_equal_brute_force(ties):
    draw = random.Random(0)
    for _ in range(2500):
        n, density = draw.randint(1, 120), draw.uniform(1e-4, 1.0)
        scores = torch.randn(n)
        if ties:
            scores = torch.randint(-2, 3, (n,)).float() * draw.choice([1.0, 1e-8, 1e30])
        count = max(1, n - int((1 - density) * n))
        assert kept_count(n, density) == count
        mask = topk_mask(scores, count)
        assert int(mask.sum()) == count
        assert mask.tolist() == by_sorting(scores, count)


@pytest.mark.parametrize("ties", [False, True])
def test_what_gpus_do_chooses_the_same(ties):
    for n in (1, 2, 17, 500):
        magnitudes = torch.randint(0, 3, (n,)).float() if ties else torch.rand(n)
        for count in {1, n // 2 or 1, n}:
            sorted_, selected = (
                way(magnitudes, count) for way in (select._by_sorting, select._by_threshold)
            )
            assert torch.equal(sorted_, selected) and int(sorted_.sum()) == count


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (512, 100), (7,), (1,)])
def test_large_layers(shape, density):
    for scores in (torch.randn(shape), torch.ones(shape), torch.zeros(shape)):
        count = kept_count(scores.numel(), density)
        mask = topk_mask(scores, count)
        assert mask.dtype == torch.bool and mask.shape == scores.shape
        assert (
            int(mask.sum()) == count == max(1, scores.numel() - int((1 - density) * scores.numel()))
        )
        if not bool(scores.flatten()[0] - scores.flatten()[-1]):  # all equal: the first ones stay
            assert bool(mask.flatten()[:count].all())


def test_channels_last_scores_choose_the_same_and_keep_their_strides():
    scores = torch.randint(-3, 4, (6, 4, 3, 3)).float()
    strided = scores.to(memory_format=torch.channels_last)
    for count in (0, 1, 50, 100, 216):
        mask = topk_mask(strided, count)
        assert torch.equal(mask, topk_mask(scores, count))
        assert mask.is_contiguous(memory_format=torch.channels_last)
    assert nm_mask(strided, 2, 4).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(nm_mask(strided, 2, 4), nm_mask(scores, 2, 4))


@pytest.mark.parametrize("count", range(7))
def test_nan_scores_raise_wherever_they_are(count):
    for place in range(6):
        for scores in (torch.randn(6), torch.ones(6), torch.tensor([0.0, 1, 1, 0, 1, 2])):
            scores[place] = torch.nan
            with pytest.raises(ValueError, match="scores hold NaN"):
                topk_mask(scores, count)
    with pytest.raises(ValueError, match="scores hold NaN"):
        nm_mask(torch.full((2, 4), torch.nan), 2, 4)


@pytest.mark.parametrize("count", [-1, 5])
def test_count_out_of_range(count):
    with pytest.raises(ValueError, match=f"count is {count}; a tensor of 4 scores keeps 0 to 4"):
        topk_mask(torch.randn(4), count)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8), (4, 4)])
@pytest.mark.parametrize("shape", [(5, 16), (6, 8, 3, 3), (4, 8, 5)])
def test_pattern_in_every_row_equals_brute_force(n, m, shape):
    for scores in (torch.randn(shape), torch.randint(-1, 2, shape).float()):
        mask = nm_mask(scores, n, m)
        assert mask.shape == scores.shape
        rows = scores.movedim(1, -1).reshape(-1, m)
        masked = mask.movedim(1, -1).reshape(-1, m)
        assert bool((masked.sum(1) == n).all())
        for row, chosen in zip(rows, masked, strict=True):
            assert chosen.tolist() == by_sorting(row, n)


def test_pattern_needs_divisible_rows():
    with pytest.raises(ValueError, match=r"divisible by 4; got \(3, 6\)"):
        nm_mask(torch.randn(3, 6), 2, 4)
    with pytest.raises(ValueError, match=r"got \(8,\)"):
        nm_mask(torch.randn(8), 2, 4)


def test_most_kept():
    assert most_kept(torch.tensor([[0.0, 1, -1, 0, 0, 0, 0, 2]]), 4) == 2
    assert most_kept(torch.zeros(3, 8, 2, 2), 4) == 0
    weight = torch.zeros(1, 8, 1, 2)
    weight[0, :3, 0, 1] = 1
    assert most_kept(weight, 4) == 3
    with pytest.raises(ValueError, match=r"n:4 needs dimension 1 divisible by 4; got \(3, 6\)"):
        most_kept(torch.zeros(3, 6), 4)


@pytest.mark.parametrize("pattern", ["", "2", "2:", "5:4", "0:4", "2:4:8", "-1:4", "a:b", "2/4"])
def test_bad_pattern(pattern):
    with pytest.raises(ValueError, match='legal: "n:m" with 0 < n <= m') as error:
        parse_pattern(pattern)
    assert repr(pattern) in str(error.value)


def masked(layer: nn.Module, kept: int, **options: float) -> GroupMask:
    """A layer whose scores and rate are both learned."""
    group = GroupMask(torch.randn_like(layer.weight), kept, learned=True, **options)
    group.learning = True
    attach(layer, MaskedWeight(group))
    group.scores.requires_grad_(True)
    if group.rate is not None:
        group.rate.requires_grad_(True)
    return group


def check_gradients(group: GroupMask, weight: torch.Tensor, g: torch.Tensor) -> None:
    """Against dL/ds = sign(s) w g and dL/dr = [sum w g] sigmoid'(r) (1 - k_min), g = dL/dw_eff."""
    sign = torch.where(group.scores > 0, 1.0, -1.0)
    assert torch.allclose(group.scores.grad, sign * weight * g, rtol=1e-4, atol=1e-5)
    pruned = group.scores.grad[~group.mask]
    assert pruned.numel() and bool((pruned != 0).all())  # pruned entries learn too
    k = 1 / (1 + torch.tensor(-float(group.rate.detach())).exp())
    wanted = float((weight.double() * g.double()).sum()) * float(k * (1 - k)) * (1 - group.k_min)
    assert float(group.rate.grad) == pytest.approx(wanted, rel=1e-4)


def test_straight_through_gradients_of_a_linear_layer():
    layer = nn.Linear(6, 4, bias=False)
    weight = layer.weight.detach().clone()
    group = masked(layer, 5, k_min=0.02, rate=-0.7)
    x, a = torch.randn(9, 6), torch.randn(9, 4)
    (layer(x) * a).sum().backward()
    g = torch.tensor(
        [[sum(float(a[b, o] * x[b, i]) for b in range(9)) for i in range(6)] for o in range(4)]
    )
    check_gradients(group, weight, g)
    assert layer._parameters["weight"].grad is None  # the phase trains masks, not weights
    group.learning = False
    (layer(x) * a).sum().backward()
    assert torch.allclose(layer._parameters["weight"].grad, g * group.mask, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_straight_through_gradients_of_a_convolution(groups):
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=False)
    weight = layer.weight.detach().clone()
    group = masked(layer, 11, k_min=0.01, rate=0.3)
    x = torch.randn(5, 4, 7, 7)
    out = layer(x)
    a = torch.randn_like(out)
    (out * a).sum().backward()
    # dL/dw[o, i, u, v] = sum over batch and positions of a[o] x[i, 2 row + u, 2 column + v].
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    g = torch.zeros_like(weight)
    per_in, per_out = 4 // groups, 6 // groups
    for o in range(6):
        for i in range(per_in):
            for u in range(3):
                for v in range(3):
                    seen = padded[:, (o // per_out) * per_in + i, u : u + 7 : 2, v : v + 7 : 2]
                    g[o, i, u, v] = (a[:, o] * seen).sum()
    check_gradients(group, weight, g)


def test_straight_through_passes_functorch():
    scores, mask = torch.randn(7), torch.tensor([True] * 3 + [False] * 4)
    g = torch.randn(7)

    def loss(scores, k):
        return (StraightThrough.apply(mask, scores, k, torch.float32) * g).sum()

    to_scores, to_density = torch.func.grad(loss, argnums=(0, 1))(scores, torch.tensor(0.4))
    assert torch.equal(to_scores, scores.sign() * g)
    assert float(to_density) == pytest.approx(float(g.sum()), rel=1e-6)


def test_mask_in_half_precision_gives_float32_gradients():
    scores = torch.randn(5, requires_grad=True)
    mask = topk_mask(scores, 2)
    out = StraightThrough.apply(mask, scores, torch.tensor(0.4), torch.bfloat16)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert scores.grad.dtype == torch.float32 and torch.equal(scores.grad, scores.sign())
