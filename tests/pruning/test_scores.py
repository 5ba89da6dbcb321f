import math

import pytest
import torch
from torch import nn

from robust_plugin import HydraPruner, MagnitudePruner, scaled_magnitude, snip_scores
from robust_plugin.pruning.scores import initial_scores


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(7, 5), 7),
        (nn.Conv2d(6, 8, 3), 6 * 9),
        (nn.Conv2d(6, 8, (3, 5), groups=2), 3 * 15),
        (nn.Conv2d(6, 6, 3, groups=6), 9),
        (nn.Conv1d(4, 3, 5), 4 * 5),
    ],
)
def test_scaled_magnitude_equals_the_formula(layer, fan_in):
    weights = layer.weight.flatten().tolist()
    largest = max(abs(w) for w in weights)
    wanted = [math.sqrt(6 / fan_in) * w / largest for w in weights]
    scores = scaled_magnitude(layer.weight)
    assert scores.shape == layer.weight.shape and scores.dtype == torch.float32
    assert scores.flatten().tolist() == pytest.approx(wanted, rel=1e-6)
    half = scaled_magnitude(layer.weight.half())
    assert half.dtype == torch.float32 and torch.allclose(half, scores, rtol=2e-3, atol=1e-5)


def test_scaled_magnitude_of_zeros_is_zero():
    assert not scaled_magnitude(torch.zeros(3, 4)).any()


def test_first_mask_of_hydra_is_the_magnitude_mask(cnn):
    learned, magnitude = HydraPruner(cnn(), density=0.1), MagnitudePruner(cnn(), density=0.1)
    for a, b, layer in zip(learned.masks, magnitude.masks, (0, 3, 6), strict=True):
        weights = cnn()[layer].weight.flatten().abs()
        largest = weights.sort(descending=True).indices[: int(a.kept)]
        assert set(a.mask.flatten().nonzero().flatten().tolist()) == set(largest.tolist())
        assert torch.equal(a.mask, b.mask)


@pytest.mark.parametrize("name", ["kaiming", "xavier"])
def test_random_scores_have_the_initialisers_spread(name):
    weight = torch.zeros(64, 32, 3, 3)
    fan_in, fan_out = 32 * 9, 64 * 9
    std = math.sqrt(2 / fan_in) if name == "kaiming" else math.sqrt(2 / (fan_in + fan_out))
    uniform = initial_scores(f"{name}_uniform", "w", weight)
    if name == "kaiming":  # torch's default slope a = 0: bound = sqrt(6 / fan_in)
        assert float(uniform.abs().max()) <= math.sqrt(6 / fan_in)
    assert float(uniform.std()) == pytest.approx(std, rel=0.03)
    assert float(uniform.abs().max()) == pytest.approx(math.sqrt(3) * std, rel=0.01)
    normal = initial_scores(f"{name}_normal", "w", weight)
    assert float(normal.std()) == pytest.approx(std, rel=0.03)
    assert float(normal.abs().max()) > 3 * std


def test_snip_equals_gradient_times_weight_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    with torch.no_grad():  # softmax regression: dL/dW = mean (p - onehot) x^T
        p = model(x).softmax(1)
        p[torch.arange(5), y] -= 1
        wanted = (p.T @ x / 5 * model[1].weight).abs()
    scores = snip_scores(model, x, y)
    assert set(scores) == {"1.weight"}
    assert torch.allclose(scores["1.weight"], wanted, atol=1e-6)


def test_snip_leaves_the_model_alone_and_serves_a_pruner(cnn, batch):
    model = cnn()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        scores = snip_scores(model, *batch)
    assert model.training and not model[1].training
    assert not model[3].weight.requires_grad and model[0].weight.requires_grad
    assert model[0].weight.grad is None and bool((model[6].weight.grad == 1).all())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    pruner = HydraPruner(model, density=0.1, scores=scores)
    for mask, name in zip(pruner.masks, ("0.weight", "3.weight", "6.weight"), strict=True):
        assert torch.equal(mask.scores, scores[name])
        kept = scores[name][mask.mask]
        assert float(kept.min()) >= float(scores[name][~mask.mask].max())


def test_scores_from_a_function_and_bad_ones(cnn):
    pruner = HydraPruner(cnn(), density=0.1, scores=lambda w: 1 / w)
    assert torch.equal(pruner.masks[2].scores, 1 / cnn()[6].weight)
    weight = torch.ones(2, 3)
    for scores, says in [
        ("snap", r"'snap'; legal: scaled_magnitude, kaiming_uniform.*dict"),
        ({"other": weight}, r"no entry for 'w'; it has \['other'\]"),
        ({"w": weight.T}, r"scores of w have shape \(3, 2\); its weight has \(2, 3\)"),
        ({"w": weight * torch.nan}, "scores of w are not finite"),
        (lambda w: w / 0, "scores of w are not finite"),
    ]:
        with pytest.raises(ValueError, match=says):
            initial_scores(scores, "w", weight)
