"""The pruners of the papers: what each keeps, and that each is a Pruner with some arguments."""

import inspect

import pytest
import torch
from pattern_networks import small
from phase_steps import SIZES, go_through, kept, states_equal, steps_of
from torch import nn
from torch.nn import functional as F

from robust_plugin import GradualPruner, HarpPruner, HydraPruner, MagnitudePruner, Pruner

# A few steps do not take the rates to their target, and the pruner warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


def test_hydra_finds_the_weights_that_matter_and_magnitude_does_not():
    """Four features tell the class through small weights, four are noise under large ones."""
    y = torch.randint(2, (256,))
    x = torch.cat([torch.randn(256, 4), (2.0 * y[:, None] - 1).repeat(1, 4)], 1)
    weight = torch.cat([torch.ones(2, 4), torch.tensor([[-0.5], [0.5]]).repeat(1, 4)], 1)
    weight[:, :4] *= torch.tensor([[1.0], [-1.0]])

    def build():
        layer = nn.Linear(8, 2, bias=False)
        layer.weight.data = weight.clone()
        return nn.Sequential(layer)

    assert not MagnitudePruner(build(), 0.5).masks[0].mask[:, 4:].any()
    model = build()
    pruner = HydraPruner(model, 0.5)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert bool(pruner.masks[0].mask[:, 4:].all())
    assert torch.equal(model[0]._parameters["weight"], weight)


def test_iterative_magnitude_prunes_what_is_smallest_now(cnn, batch, attach, train):
    model = cnn()
    pruner = MagnitudePruner(model, 0.5)
    train(pruner, "finetune", lr=0.3)
    before = [m.mask.clone() for m in pruner.masks]
    for density in (0.25, 0.1, 0.05):
        weights = [model[i].weight.detach().clone() for i in (0, 3, 6)]
        pruner.set_density(density)
        for mask, weight, was in zip(pruner.masks, weights, before, strict=True):
            n = weight.numel()
            count = max(1, n - int((1 - density) * n))
            best = weight.flatten().abs().sort(descending=True).indices[:count]
            assert set(mask.mask.flatten().nonzero().flatten().tolist()) == set(best.tolist())
            assert not (mask.mask & ~was).any()  # what is gone stays gone
        assert pruner.kept == pruner.budget.total
        before = [m.mask.clone() for m in pruner.masks]
        train(pruner, "finetune", lr=0.3)
    for learned in (HydraPruner(cnn(), 0.5), MagnitudePruner(cnn(), pattern="2:4", exclude=["0"])):
        with pytest.raises(ValueError, match="cannot change its density on the way"):
            learned.set_density(0.1)
    with pytest.raises(ValueError, match="density is 0; legal"):
        pruner.set_density(0)


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_pattern_everywhere_it_fits(cnn, batch, attach, train, kind):
    model = cnn()
    pruner = {"magnitude": MagnitudePruner, "hydra": HydraPruner}[kind](model, pattern="2:4")
    assert pruner.left_dense == ("0.weight",)  # one input channel
    assert [g.name for g in pruner.groups] == ["3.weight", "6.weight"]

    def check():
        for i in (3, 6):
            rows = model[i].weight.detach().movedim(1, -1).reshape(-1, 4)
            assert bool(((rows != 0).sum(1) == 2).all())
        assert pruner.kept == pruner.budget.total == (288 + 1280) // 2

    check()
    if kind == "hydra":
        train(pruner, "prune", lr=1.0)
        check()
    train(pruner, "finetune")
    check()
    pruner.finalize()
    check()
    assert bool((model[0].weight != 0).all())


def test_rates_given_by_name_imply_the_density(cnn, train):
    rates = {"0.weight": 0.5, "3.weight": 0.1, "6.weight": 0.02}
    pruner = HydraPruner(cnn(), rates=rates)
    counts = [72 - int(0.5 * 72), 288 - int(0.9 * 288), 1280 - int(0.98 * 1280)]
    train(pruner, "prune")
    train(pruner, "finetune")
    assert [int(m.mask.sum()) for m in pruner.masks] == counts
    assert pruner.kept == pruner.budget.total == sum(counts)


def test_harp_from_rates_given_by_name(cnn, train):
    pruner = HarpPruner(cnn(), rates={"0.weight": 0.5, "3.weight": 0.2, "6.weight": 0.05})
    total = pruner.budget.total
    assert total == 36 + 58 + 64
    train(pruner, "prune")
    train(pruner, "finetune")
    assert pruner.kept == total


def test_plain_pruner_is_any_corner(cnn, train):
    harp = Pruner(cnn(), 0.05, learn=("scores", "rates"), control="held")
    train(harp, "prune")
    twin = HarpPruner(cnn(), 0.05)
    train(twin, "prune")
    for a, b in zip(harp.masks, twin.masks, strict=True):
        assert torch.equal(a.mask, b.mask) and torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("learn", [("scores",), ("rates",), ("scores", "rates")])
def test_gradual_is_a_pruner_with_lamp_rates_and_a_geometric_schedule(learn):
    options = {"rates": "lamp", "schedule": "geometric", "last_cut": 0.5}
    one, other = (
        GradualPruner(small(), 0.05, learn=learn),
        Pruner(small(), 0.05, learn=learn, **options),
    )
    for pruner in (one, other):
        for phase, _ in go_through(pruner):
            if phase == "shrink" and pruner.steps.step == 8:
                assert pruner.kept == kept(SIZES, 0.1)
        assert pruner.kept == pruner.budget.total == kept(SIZES, 0.05)
    assert states_equal(one.model.state_dict(), other.model.state_dict())


def test_gradual_has_the_arguments_of_pruner():
    ours = inspect.signature(GradualPruner).parameters
    theirs = inspect.signature(Pruner).parameters
    assert list(ours) == list(theirs)
    differ = {name for name in ours if ours[name].default != theirs[name].default}
    assert differ == {"learn", "rates", "schedule"}


@pytest.mark.parametrize(("pattern", "density"), [("2:4", None), ("n:4", 0.3)])
def test_gradual_takes_patterns(pattern, density):
    pruner = GradualPruner(small(), density, pattern=pattern)
    if density:  # LAMP, so that layers differ
        for _ in steps_of(pruner, "shrink"):
            pass
        assert len(set(pruner.densities.values())) > 1
    for wrong in (4, 2.4, "4"):
        with pytest.raises(ValueError, match=f"pattern is {wrong!r}; legal"):
            GradualPruner(small(), 0.3, pattern=wrong)


def test_rates_of_lamp_are_computed_anew_at_every_cut():
    """A layer that shrinks in training loses its share of the budget on the way."""
    pruner = GradualPruner(small(), 0.05, learn=())
    assert pruner.order == ("shrink", "finetune")
    with torch.no_grad():
        first = dict(pruner.densities)
        optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=0.0)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=4)
        shares = []
        for _ in range(4):
            # One weight of the widest layer outgrows the others, so that LAMP keeps few of these.
            pruner.model[6].weight[0, 0] += 3.0
            optimizer.step()
            shares.append(pruner.densities["6.weight"] / pruner.densities["3.weight"])
    assert set(first.values()) == {1.0}
    fixed = MagnitudePruner(small(), 0.05, rates="lamp")
    assert shares[-1] < 0.5 * fixed.densities["6.weight"] / fixed.densities["3.weight"]
    assert pruner.kept == kept(SIZES, 0.05)
