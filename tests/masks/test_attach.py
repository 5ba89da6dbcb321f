"""Masks on layers: what a network computes with them, and what copies and states keep."""

import copy

import pytest
import torch
from pattern_networks import counts_of_every, small  # noqa: E402
from torch import nn
from torch.nn import functional as F

from robust_plugin import HydraPruner, MagnitudePruner, finalize
from robust_plugin.masks.attach import GroupMask, held_weights, masked_weights

KINDS = ["magnitude", "hydra", "rates", "held", "hinge"]


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        key = x.repeat(1, 1, 2)[..., : self.attention.kdim]
        return self.head(self.attention(x, key, key)[0].mean(1))


def is_untouched(model, fresh):
    """Same classes, attributes and parameter order as a network no pruner ever saw."""
    for (name, layer), (other, plain) in zip(
        model.named_modules(), fresh.named_modules(), strict=True
    ):
        assert name == other and type(layer) is type(plain)
        assert set(vars(layer)) == set(vars(plain))
        assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    fresh.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        (kind, phase)
        for kind in KINDS
        for phase in ("attached", "prune", "finetune")
        if (kind, phase) != ("magnitude", "prune")  # it has none
    ],
)
def test_density_one_changes_nothing_bit_for_bit(cnn, batch, attach, train, kind, phase):
    x, y = batch
    model, plain = cnn(), cnn()
    pruner = attach(kind, model, 1.0)
    if phase == "finetune" and kind != "magnitude":
        pruner.set_phase("prune")
        pruner.update_masks()
    if phase != "attached":
        parameters = pruner.set_phase(phase)
        if phase == "prune":
            pruner.follow(torch.optim.SGD(parameters, lr=0.1), epochs=1, steps_per_epoch=1)
    assert pruner.kept == 1640
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        logits, wanted = model(x), plain(x)
        assert torch.equal(logits, wanted)
        model.zero_grad(), plain.zero_grad()
        F.cross_entropy(logits, y).backward()
        F.cross_entropy(wanted, y).backward()
        trained = 0
        for name, parameter in plain.named_parameters():
            layer, key = name.split(".")
            ours = model[int(layer)]
            if key == "weight" and layer != "1":
                own = ours._parameters["weight"]
            else:
                own = getattr(ours, key)
            if own.requires_grad:
                trained += 1
                assert torch.equal(own.grad, parameter.grad), name
        assert trained == (2 if phase == "prune" else 8)


def test_pattern_that_keeps_all_changes_nothing(batch, cnn):
    model = cnn()
    HydraPruner(model, pattern="4:4", exclude=["0"])
    assert torch.equal(model(batch[0]), cnn()(batch[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_attach_train_finalize_gives_the_plain_network(cnn, batch, attach, train, kind):
    model = cnn()
    pruner = attach(kind, model, 0.1)
    for phase in ("prune", "finetune"):
        if kind != "magnitude" or phase == "finetune":
            train(pruner, phase)
    model.eval()
    logits = model(batch[0])
    masks = [mask.mask.clone() for mask in pruner.masks]
    pruner.finalize()
    assert pruner.phase == "finalized"
    assert torch.equal(model(batch[0]), logits)
    fresh = cnn(3)
    is_untouched(model, fresh)
    assert torch.equal(fresh.eval()(batch[0]), logits)
    for i, mask in zip((0, 3, 6), masks, strict=True):
        assert not model[i].weight[~mask].any() and bool((model[i].weight[mask] != 0).all())
        assert type(model[i].weight) is nn.Parameter
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="finalized already"):
        pruner.finalize()
    with pytest.raises(ValueError, match="found no masked layer"):
        finalize(model)
    copy.deepcopy(model)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 6}, {"bias": False}])
def test_attention_weights_are_pruned(options):
    model, plain = Attention(**options), Attention(**options)
    plain.load_state_dict(model.state_dict())
    pruner = HydraPruner(model, density=0.25)
    expected = (
        ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        if "kdim" in options
        else ["in_proj_weight"]
    )
    names = [f"attention.{n}" for n in expected] + ["attention.out_proj.weight", "head.weight"]
    assert [group.name for group in pruner.groups] == names
    x = torch.rand(4, 5, 8)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0)
    pruner.follow(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
        assert all(mask.scores.grad.abs().sum() > 0 for mask in pruner.masks)
        optimizer.step()
    # The reference: a plain copy whose weights are masked by hand.
    for name, mask in zip(names, pruner.masks, strict=True):
        plain.get_parameter(name).data.mul_(mask.mask)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(x), plain.train(mode)(x), atol=1e-6)
    pruner.set_phase("finetune")
    pruner.finalize()
    with torch.no_grad():  # also through torch's fused attention
        assert torch.allclose(model(x), plain(x), atol=1e-6)
    is_untouched(model, Attention(**options))


@pytest.mark.parametrize("original_first", [True, False])
def test_copies_made_before_finalizing_live_on(cnn, batch, attach, train, original_first):
    x, y = batch
    model = cnn()
    pruner = attach("held", model, 0.1)
    train(pruner, "prune")
    train(pruner, "finetune")
    twin = copy.deepcopy(model)
    model.eval(), twin.eval()
    logits = model(x)
    assert torch.equal(twin(x), logits)
    first, second = (model, twin) if original_first else (twin, model)
    finalize(first)
    assert torch.equal(first(x), logits) and torch.equal(second(x), logits)
    # The other still has its masks, and its weights are its own.
    F.cross_entropy(second(x), y).backward()
    assert len(list(masked_weights(second))) == 3
    with torch.no_grad():
        first[0].weight.zero_()
    assert torch.equal(second(x), logits)
    finalize(second)
    assert torch.equal(second(x), logits)
    is_untouched(first, cnn()), is_untouched(second, cnn())


def test_copies_made_after_finalizing(cnn, batch):
    model = cnn().eval()
    pruner = MagnitudePruner(model, density=0.1)
    pruner.finalize()
    twin = copy.deepcopy(model)
    again = MagnitudePruner(twin, density=0.05)
    assert int(again.masks[2].mask.sum()) == 64
    assert int(model[6].weight.count_nonzero()) == 128
    again.finalize()
    is_untouched(model, cnn()), is_untouched(twin, cnn())


def test_a_copys_mask_is_its_own(cnn, attach, train):
    model = cnn()
    pruner = attach("hydra", model, 0.1)
    twin = copy.deepcopy(model)
    masks = [carrier.group.mask.clone() for _, _, _, carrier in masked_weights(twin)]
    train(pruner, "prune", lr=1.0)
    theirs = [carrier.group.mask for _, _, _, carrier in masked_weights(twin)]
    assert all(torch.equal(a, b) for a, b in zip(masks, theirs, strict=True))
    assert any(not torch.equal(a, m.mask) for a, m in zip(masks, pruner.masks, strict=True))


def test_average_made_before_the_finetune_phase_gets_the_final_masks(cnn, attach, train):
    model = cnn()
    pruner = attach("held", model, 0.05)
    train(pruner, "prune")
    average = copy.deepcopy(model)
    other = cnn()
    train(pruner, "prune")  # moves masks on
    train(pruner, "finetune")
    weights = [average[i]._parameters["weight"].clone() for i in (0, 3, 6)]
    pruner.finalize(average)
    for i, weight, mask in zip((0, 3, 6), weights, pruner.masks, strict=True):
        assert torch.equal(average[i].weight, weight * mask.mask)
    is_untouched(average, cnn())
    assert sum(int(average[i].weight.count_nonzero()) for i in (0, 3, 6)) == pruner.budget.total
    assert len(list(masked_weights(model))) == 3 and pruner.phase == "finetune"
    with pytest.raises(ValueError, match="no copy of the network"):
        pruner.finalize(other)


def test_free_finalize_uses_the_copys_own_masks(cnn, attach, train):
    model = cnn()
    pruner = attach("hydra", model, 0.1)
    twin = copy.deepcopy(model)
    train(pruner, "prune", lr=1.0)
    with pytest.warns(UserWarning, match="has learned nothing yet"):
        finalize(twin)
    for i, mask in zip((0, 3, 6), MagnitudePruner(cnn(), 0.1).masks, strict=True):
        assert torch.equal(twin[i].weight != 0, mask.mask)


def test_an_optimizer_made_before_attaching_keeps_working(cnn, batch):
    """Against a plain network whose weights are masked by hand in each forward pass."""
    x, y = batch
    model, plain = cnn(), cnn()
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for m in (model, plain)
    ]

    def step(network, optimizer, forward):
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()

    for network, optimizer in zip((model, plain), optimizers, strict=True):
        step(network, optimizer, network)
    pruner = MagnitudePruner(model, density=0.1)
    names = ("0.weight", "3.weight", "6.weight")
    masks = {}
    for name, n in zip(names, (72, 288, 1280), strict=True):
        weight = plain.get_parameter(name).detach()
        order = weight.flatten().abs().sort(descending=True, stable=True).indices
        masks[name] = torch.zeros(n).index_fill(0, order[: n - int(0.9 * n)], 1).view_as(weight)

    def masked(x):
        weights = {name: plain.get_parameter(name) * masks[name] for name in names}
        return torch.func.functional_call(plain, weights, (x,))

    pruner.set_phase("finetune")
    for _ in range(4):
        step(model, optimizers[0], model)
        step(plain, optimizers[1], masked)
    assert torch.equal(model(x), masked(x))
    pruner.finalize()
    for name in names:
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name) * masks[name])
    for name, own in model.named_parameters():
        momenta = [
            optimizer.state[p]["momentum_buffer"] * masks.get(name, 1)
            for optimizer, p in zip(optimizers, (own, plain.get_parameter(name)), strict=True)
        ]
        assert torch.equal(*momenta)


def test_finetune_gradient_is_masked(cnn, batch):
    """dL/dw = m dL/dw_eff: of the pruned weights, exactly zero."""
    x, y = batch
    model, plain = cnn(), cnn()
    pruner = MagnitudePruner(model, density=0.1)
    pruner.set_phase("finetune")
    for i, mask in zip((0, 3, 6), pruner.masks, strict=True):
        plain[i].weight.data.mul_(mask.mask)
    F.cross_entropy(model(x), y).backward()
    F.cross_entropy(plain(x), y).backward()
    for i, mask in zip((0, 3, 6), pruner.masks, strict=True):
        g = model[i]._parameters["weight"].grad
        assert torch.equal(g, plain[i].weight.grad * mask.mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_stay_float32_with_their_exact_values(cnn, dtype):
    model = cnn()
    pruner = HydraPruner(model, density=0.1, scores="kaiming_normal")
    scores = [mask.scores.detach().clone() for mask in pruner.masks]
    masks = [mask.mask.clone() for mask in pruner.masks]
    parameters = [mask.scores for mask in pruner.masks]
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    for mask, values, chosen, parameter in zip(
        pruner.masks, scores, masks, parameters, strict=True
    ):
        assert mask.scores is parameter and mask.scores.dtype == torch.float32
        assert torch.equal(mask.scores, values) and torch.equal(mask.mask, chosen)
    pruner.update_masks()
    assert all(torch.equal(m.mask, chosen) for m, chosen in zip(pruner.masks, masks, strict=True))
    model.float()
    assert all(torch.equal(m.scores, v) for m, v in zip(pruner.masks, scores, strict=True))


def test_rate_stays_float32(cnn, attach):
    model = cnn()
    pruner = attach("held", model, 0.1)
    rates = [float(mask.rate.detach()) for mask in pruner.masks]
    model.bfloat16().float()
    assert [float(mask.rate.detach()) for mask in pruner.masks] == rates


def test_bfloat16_model_learns(cnn, batch, attach, train):
    model = cnn().bfloat16()
    pruner = attach("hydra", model, 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0)
    pruner.follow(optimizer)
    before = [mask.scores.detach().clone() for mask in pruner.masks]
    logits = model(batch[0].bfloat16())
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits.float(), batch[1]).backward()
    optimizer.step()
    for mask, was in zip(pruner.masks, before, strict=True):
        assert mask.scores.dtype == torch.float32 and not torch.equal(mask.scores, was)
    assert pruner.kept == pruner.budget.total


@pytest.mark.parametrize("when", ["before", "after"])
def test_channels_last(cnn, batch, attach, train, when):
    plain, model = cnn(), cnn()
    if when == "before":
        model.to(memory_format=torch.channels_last)
    reference, pruner = attach("hydra", plain, 0.1), attach("hydra", model, 0.1)
    if when == "after":
        model.to(memory_format=torch.channels_last)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    train(reference, "prune"), train(pruner, "prune")
    for a, b in zip(reference.masks, pruner.masks, strict=True):
        assert torch.equal(a.mask, b.mask)
        assert torch.allclose(a.scores, b.scores, atol=1e-5)
    pruner.finalize()
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_assigning_a_masked_weight_sets_the_parameter(cnn):
    model = cnn()
    pruner = MagnitudePruner(model, density=0.1)
    assigned = nn.Parameter(torch.ones(10, 128))
    model[6].weight = assigned
    assert model[6].weight is assigned
    assert int(model[6].weight.sum()) == pruner.masks[2].kept


def test_held_weights_are_constants_and_end_also_on_errors(cnn, batch, attach, train):
    model = cnn().eval()
    pruner = attach("hydra", model, 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    logits = model(batch[0])
    with held_weights(model):
        assert torch.equal(model(batch[0]), logits)
        assert not model[6].weight.requires_grad
        held = model[6].weight
        assert model[6].weight is held  # not multiplied again
        with held_weights(model):
            assert model[6].weight is held
        assert model[6].weight is held
    assert model[6].weight.requires_grad
    with pytest.raises(KeyError), held_weights(model):
        raise KeyError
    assert model[6].weight.requires_grad


def test_group_mask_saves_its_mask():
    group = GroupMask(torch.randn(50), 5)
    assert set(group.state_dict()) == {"scores", "_extra_state"}
    group.set_mask(torch.arange(50) % 10 == 3)  # not that of the scores
    other = GroupMask(torch.randn(50), 30)
    other.load_state_dict(group.state_dict())
    assert other.kept == 5 and torch.equal(other.mask, group.mask)


def test_loading_checks_the_pattern():
    state = {}
    for pattern in ("1:4", "2:4"):
        model = small()
        HydraPruner(model, pattern=pattern)
        state[pattern] = model.state_dict()
    with pytest.raises(ValueError, match=r"a pruner that keeps 0.25 .* and this one keeps 0.5"):
        model.load_state_dict(state["1:4"])
    free = small()
    HydraPruner(free, 0.25, pattern="n:4")
    free.load_state_dict(state["1:4"])
    assert counts_of_every(free[6].weight, 4) == {1}
    unstructured = small()
    HydraPruner(unstructured, 0.25, exclude=["0"])
    with pytest.raises(ValueError, match="is not the pattern n:4"):
        free.load_state_dict(unstructured.state_dict())
