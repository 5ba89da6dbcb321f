import math

import pytest
import torch
from scipy import stats
from torch import nn

from robust_plugin import Smoothed, ThreatModel, pgd
from robust_plugin.certificates import smoothing as smoothing_module


def phi(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


@pytest.fixture
def halves():
    """A linear classifier: the smoothed one is the same, its radius the distance to the plane."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        model[1].bias[1] += (model(x)[:, 0] - model(x)[:, 1]).median()
        logits = model(x)
    row = model[1].weight[0] - model[1].weight[1]
    distance = (logits[:, 0] - logits[:, 1]).abs() / row.detach().norm()
    return model, x, logits.argmax(1), distance


def test_radii_against_the_closed_form(halves):
    """The bound is below the true radius but for alpha, and near it with many votes."""
    model, x, y, distance = halves
    found = Smoothed(0.25, n0=100, n=20_000, alpha=0.001).certify(model, x, y)
    sure = found.predictions >= 0
    assert (found.predictions[sure] == y[sure]).all() and sure.float().mean() > 0.8
    assert (found.radii <= distance + 1e-9).all()
    near = sure & (distance < 0.5) & (distance > 0.05)
    assert near.sum() >= 10
    assert ((distance - found.radii)[near] < 0.035).all()
    assert (found.radii[~sure] == 0).all()


def test_radii_of_given_counts_are_cohens(halves, monkeypatch):
    """Against P(Binomial(n, p) >= k) = alpha solved by bisection, and at the two ends."""
    model, x, y, _ = halves
    counts = [0, 1, 60, 80, 99, 100]
    votes = torch.tensor([[k, 100 - k] for k in counts])
    chosen = torch.tensor([[1, 0]] * 6)

    def given(self, model, x, y, purpose, samples, tell=None):
        return chosen if purpose == "choose" else votes

    monkeypatch.setattr(Smoothed, "_votes", given)
    found = Smoothed(0.5, n=100, alpha=0.01).certify(model, x[:6], torch.zeros(6).long())
    for k, radius, answer in zip(counts, found.radii, found.predictions, strict=True):
        low, high = 0.0, 1.0
        for _ in range(200):
            p = (low + high) / 2
            tail = sum(math.comb(100, i) * p**i * (1 - p) ** (100 - i) for i in range(k, 101))
            low, high = (p, high) if tail < 0.01 else (low, p)
        if k == 0 or low <= 0.5:
            assert answer == -1 and radius == 0
        else:
            assert answer == 0
            assert phi(radius.item() / 0.5) == pytest.approx(low, abs=1e-9)
    assert phi(found.radii[-1].item() / 0.5) == pytest.approx(0.01 ** (1 / 100), abs=1e-9)


def test_coverage_over_1000_repetitions():
    """At alpha = .05 the radius is above the true one in at most 5 % (and noise) of them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    row = (model[1].weight[0] - model[1].weight[1]).detach()
    # Points of one distance and with noise of their own: along the plane, from its middle.
    along = torch.randn(1000, 4)
    along = along - (along @ row)[:, None] * row / row.square().sum()
    many = (0.5 + 0.1 * along.clamp(-3, 3)).clamp(0, 1)
    along = (many - 0.5) @ row
    many = (many - along[:, None] * row / row.square().sum()).view(1000, 1, 2, 2)
    with torch.no_grad():  # a distance of .8 sigma
        model[1].bias.copy_(torch.tensor([0.2 * row.norm(), 0.5 * row.sum()]))
    found = Smoothed(0.25, n0=20, n=100, alpha=0.05).certify(model, many, torch.zeros(1000).long())
    held = (found.radii <= 0.2) | (found.predictions != 0)
    assert held.float().mean() >= 0.935
    # And the bound is no vacuous one.
    assert held.float().mean() <= 0.995 and found.radii.mean() > 0.1


def test_no_attack_within_a_certified_radius(cnn, batch):
    """L2 PGD on the mean of noisy logits; a fooled vote's upper bound must not fall below 1/2."""
    model, x = cnn(1).eval(), batch[0]
    with torch.no_grad():
        model[6].weight.mul_(20)
    smoothed = Smoothed(0.25, n0=50, n=400, alpha=0.001)
    y = smoothed.certify(model, x, batch[1]).predictions
    points = (y >= 0).nonzero().flatten()
    found = smoothed.certify(model, x[points], y[points])
    certified = (found.radii > 0.05).nonzero().flatten()
    assert len(certified) >= 5
    noise = 0.25 * torch.randn(64, 1, 8, 8)

    class Mean(nn.Module):
        def forward(self, v):
            logits = model((v[:, None] + noise).flatten(0, 1))
            return logits.softmax(1).view(len(v), 64, -1).mean(1)

    for i in certified.tolist():
        threat = ThreatModel("L2", eps=0.99 * found.radii[i].item(), low=-9, high=9)
        at, label = x[points[i]][None], y[points[i]][None]
        x_adv = pgd(threat, steps=20, keep="best")(Mean(), at, label)
        votes = model(x_adv + 0.25 * torch.randn(1000, 1, 8, 8)).argmax(1) == label
        upper = stats.beta.ppf(0.999, int(votes.sum()) + 1, 1000 - int(votes.sum()))
        assert upper >= 0.5


def test_a_subset_has_the_answers_that_it_has_in_the_whole_set(halves):
    """In any order; equal points have equal answers."""
    model, x, y, _ = halves
    smoothed = Smoothed(0.25, n=250)
    whole = smoothed.certify(model, x, y)
    part = smoothed.certify(model, x[5:9], y[5:9])
    assert torch.equal(part.radii, whole.radii[5:9]) and (part.radii > 0).any()
    assert torch.equal(part.predictions, whole.predictions[5:9])
    backwards = smoothed.certify(model, x.flip(0), y.flip(0))
    assert torch.equal(backwards.radii, whole.radii.flip(0))
    assert torch.equal(smoothed.predict(model, x)[5:9], smoothed.predict(model, x[5:9]))
    twice = smoothed.certify(model, x[[7, 7]], y[[7, 7]])
    assert torch.equal(twice.radii, whole.radii[[7, 7]])


def test_points_have_noise_of_their_own():
    """Neighbours too: the votes of two points that differ in one bit are independent."""
    seen = []

    class Records(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    x = torch.full((2, 1, 8, 8), 0.5)
    x[1, 0, 0, 0] = torch.nextafter(x[1, 0, 0, 0], torch.ones(()))
    Smoothed(0.5, n=100).predict(Records(), x)
    drawn = torch.cat([each for each in seen if len(each) > 2])
    one, other = (drawn - 0.5).flatten(1)[:100].flatten(), (drawn - 0.5).flatten(1)[100:].flatten()
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert len(one) == len(other) == 6400 and abs(correlation) < 0.05


@pytest.mark.parametrize("wrong", [lambda x: 255 * x, lambda x: (x - 0.5) / 0.25, lambda x: x - 1])
def test_inputs_in_another_unit_are_refused(halves, wrong):
    model, x, y, _ = halves
    message = r"inputs span .* outside \[0, 1\].* Smoothed\(low=..., high=...\)"
    with pytest.raises(ValueError, match=message):
        Smoothed(0.25, n=10).certify(model, wrong(x), y)
    with pytest.raises(ValueError, match=message):
        Smoothed(0.25, n=10).predict(model, wrong(x))


def test_a_box_of_ones_own_has_radii_in_its_unit():
    """On pixels in 0..255 the network of x / 255 has radii 255 times as large."""
    model = nn.Linear(1, 2)  # class 1 where x > 0.5
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    inner = nn.Linear(1, 1)
    with torch.no_grad():
        inner.weight.fill_(1 / 255), inner.bias.zero_()
    x, y = torch.tensor([[0.7], [1.0]]), torch.tensor([1, 1])
    pixels = Smoothed(0.25 * 255, n=5000, low=0, high=255)
    found = pixels.certify(nn.Sequential(inner, model), 255 * x, y)
    for radius, true in zip(found.radii.tolist(), (0.2 * 255, 0.5 * 255), strict=True):
        assert 0.85 * true < radius < true


def test_noise_is_a_function_of_seed_and_point_alone(halves):
    model, x, y, _ = halves
    found = Smoothed(0.25, n=250, batch_size=1000).certify(model, x, y)
    assert torch.equal(Smoothed(0.25, n=250, batch_size=70).certify(model, x, y).radii, found.radii)
    state = torch.random.get_rng_state()
    torch.randn(3)
    assert torch.equal(Smoothed(0.25, n=250).certify(model, x, y).radii, found.radii)
    torch.random.set_rng_state(state)
    other = Smoothed(0.25, n=250, seed=1).certify(model, x, y)
    assert not torch.equal(other.radii, found.radii)


def test_noise_has_its_sigma_and_votes_are_fresh():
    """The votes that certify are none of those that choose; as unclipped as the theory wants."""
    seen = []

    class Records(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    x = torch.zeros(2, 1, 8, 8)
    x[1] = 1e-6  # equal points would share their noise
    Smoothed(0.5, n0=100, n=300).certify(Records(), x, torch.tensor([0, 1]))
    drawn = torch.cat([each for each in seen if len(each) > 2])
    assert drawn.shape == (800, 1, 8, 8) and len(drawn.unique(dim=0)) == 800
    assert drawn.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(drawn.mean().item()) < 0.01 and drawn.min() < -1


@pytest.mark.parametrize("batch_size", [100, 250, 1000])
def test_points_are_reported_while_their_unit_is_computed(halves, batch_size):
    model, x, y, _ = halves
    seen = []
    smoothed = Smoothed(0.25, n0=10, n=200, batch_size=batch_size)
    smoothed.certify(model, x, y, progress=seen.append)
    done = [each.done for each in seen]
    assert done[0] == 0 and done[-1] == len(x) == 40 and done == sorted(set(done))
    # Two blocks of noise per point; 100 inputs are one block, and 1000 are five points.
    assert max(b - a for a, b in zip(done, done[1:], strict=False)) <= max(1, batch_size // 200)
    assert {(each.task, each.total) for each in seen} == {("randomized smoothing: certify", 40)}


@pytest.mark.parametrize("purpose", ["certify", "predict"])
def test_resumed_equals_uninterrupted(halves, tmp_path, monkeypatch, purpose):
    model, x, y, _ = halves
    monkeypatch.setattr(smoothing_module, "_UNIT", 15)

    def run(smoothed, **options):
        if purpose == "predict":
            return [smoothed.predict(model, x, **options)]
        found = smoothed.certify(model, x, y, **options)
        return [found.radii, found.predictions]

    smoothed = Smoothed(0.25, n=200)
    whole = run(smoothed)

    class StopError(Exception):
        pass

    def stop(progress):
        assert progress.total == 40 and progress.unit == "points"
        if progress.done == 30:
            raise StopError

    with pytest.raises(StopError):
        run(smoothed, journal=tmp_path, progress=stop)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    again = run(smoothed, journal=tmp_path)
    first = len(calls)
    run(smoothed, journal=tmp_path)
    assert first > 1 and len(calls) == first + 1  # one look whether it is the same network
    hook.remove()
    assert all(torch.equal(one, two) for one, two in zip(again, whole, strict=True))
    with pytest.raises(ValueError, match="journal of another evaluation: smoothing"):
        run(Smoothed(0.5, n=200), journal=tmp_path)
    purpose = {"certify": "predict", "predict": "certify"}[purpose]
    with pytest.raises(ValueError, match="journal of another evaluation: purpose"):
        run(smoothed, journal=tmp_path)


def test_predict_abstains_where_votes_are_even(halves):
    model, x, y, distance = halves
    answers = Smoothed(0.25, n=500, alpha=0.001).predict(model, x)
    far = distance > 0.15
    assert (answers[far] == y[far]).all()
    sure = [
        stats.binomtest(round(500 * phi(d / 0.25)), 500).pvalue <= 1e-6 for d in distance.tolist()
    ]
    assert (answers[torch.tensor(sure)] >= 0).all()
    with torch.no_grad():
        model[1].weight.zero_(), model[1].bias.zero_()
        model[1].weight[0], model[1].weight[1] = torch.ones(16), -torch.ones(16)
    assert (Smoothed(0.25, n=500).predict(model, torch.zeros(3, 1, 4, 4)) == -1).all()


def test_the_model_is_left_as_it_was_and_run_in_evaluation_mode(cnn, batch):
    model, modes = cnn(), []
    model[1].eval()
    flags = [m.training for m in model.modules()]
    model.register_forward_hook(lambda m, *_: modes.append(m.training))
    Smoothed(0.25, n0=10, n=10).certify(model, *batch)
    assert not any(modes) and [m.training for m in model.modules()] == flags
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0.0; legal: a number above 0"),
        ({"sigma": 0.1, "alpha": 1.0}, "alpha is 1.0"),
        ({"sigma": 0.1, "n": 0}, "n is 0; legal: at least 1"),
        ({"sigma": 0.1, "low": 1.0}, "low is 1.0 and high is 1.0; low must be below high"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Smoothed(**options)


def test_bad_input(cnn, batch):
    model, (x, y) = cnn(), batch
    with pytest.raises(ValueError, match="labels are"):
        Smoothed(0.1, n=10).certify(model, x, y + 10)
    with pytest.raises(ValueError, match="the batch is empty"):
        Smoothed(0.1, n=10).certify(model, x[:0], y[:0])
    model[0].weight.data[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        Smoothed(0.1, n=10).certify(model, x, y)
