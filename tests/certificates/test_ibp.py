import copy

import pytest
import torch
from torch import nn

from robust_plugin import (
    IBP,
    Group,
    HarpPruner,
    HydraPruner,
    Member,
    ThreatModel,
    finalize,
    ibp_margins,
)
from robust_plugin.certificates.checks import proved
from robust_plugin.objectives.by_bounds import nrs_loss


def test_a_linear_network_has_its_closed_form():
    """min over the box of (w_y - w_j) x' + b: each coordinate at the end that its sign asks for."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = torch.rand(5, 3, 2, 2).double(), torch.tensor([0, 1, 2, 3, 0])
    found = ibp_margins(model, x, y, ThreatModel("Linf", eps=0.3, low=0.0, high=0.9 + 0.2))
    weight, bias = model[1].weight, model[1].bias
    for i in range(5):
        for j in range(4):
            total = bias[y[i]] - bias[j]
            for w, v in zip(weight[y[i]] - weight[j], x[i].flatten(), strict=True):
                total = total + min(w * max(v - 0.3, 0.0), w * min(v + 0.3, 1.1))
            assert found[i, j].item() == pytest.approx(total.item(), abs=1e-12)


def test_an_l2_ball_far_from_the_box_is_the_dual_norm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = 0.4 + 0.2 * torch.rand(5, 3, 2, 2).double(), torch.tensor([0, 1, 2, 3, 0])
    found = ibp_margins(model, x, y, ThreatModel("L2", eps=0.3))
    logits, weight = model(x), model[1].weight
    for i in range(5):
        for j in range(4):
            wanted = logits[i, y[i]] - logits[i, j] - 0.3 * (weight[y[i]] - weight[j]).norm()
            assert found[i, j].item() == pytest.approx(wanted.item(), abs=1e-12)
    # And never looser than the box that it lies in.
    box = ibp_margins(model, x, y, ThreatModel("Linf", eps=0.3))
    assert (found >= box - 1e-12).all()
    wide = ThreatModel("L2", eps=50.0)
    in_the_box = ibp_margins(model, x, y, ThreatModel("Linf", eps=1.0))
    assert torch.allclose(ibp_margins(model, x, y, wide), in_the_box, atol=1e-12)


def test_a_convolution_in_l2_knows_its_border():
    """With one pixel in reach of a padded corner the row's norm is that one weight's."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten()).double()
    x = torch.full((1, 1, 1, 1), 0.5).double()
    found = ibp_margins(model, x, torch.tensor([0]), ThreatModel("L2", eps=0.1))
    w = model[0].weight[:, 0, 1, 1]
    wanted = 0.5 * w[0] - 0.1 * w[0].abs() - (0.5 * w[1] + 0.1 * w[1].abs())
    assert found[0, 1].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_a_convolution_in_l2_whose_padding_takes_a_pixel_twice():
    """Circular padding of one pixel: nine times the same pixel, so the sum of the weights."""
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular", bias=False)
    model = nn.Sequential(conv, nn.Flatten()).double()
    x = torch.full((1, 1, 1, 1), 0.5).double()
    found = ibp_margins(model, x, torch.tensor([0]), ThreatModel("L2", eps=0.1))
    lowest = (0.4 * conv.weight.sum((1, 2, 3)), 0.6 * conv.weight.sum((1, 2, 3)))
    worst = min(ends[0] - ends[1] for ends in lowest)
    assert found[0, 1].item() <= worst.item() + 1e-12


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_bound_of_a_random_network_is_above_what_is_found(random_network, highest_excess, norm):
    for seed in range(100, 150):
        model, x, y = random_network(seed)
        eps = [0.01, 0.05, 0.3][seed % 3] * (1 if norm == "Linf" else 5)
        threat = ThreatModel(norm, eps=eps)
        margins = ibp_margins(model, x, y, threat)
        assert highest_excess(model, x, y, threat, margins) <= 0, seed


def test_at_eps_zero_the_bounds_are_the_margins(random_network):
    for seed in range(20):
        model, x, y = random_network(seed)
        logits = model(x)
        wanted = logits.gather(1, y[:, None]) - logits
        assert torch.allclose(ibp_margins(model, x, y, ThreatModel("Linf", eps=0.0)), wanted,
                              atol=1e-4)  # fmt: skip


def test_batchnorm_is_in_running_statistics_whatever_the_mode(cnn, batch, threat):
    model = cnn()
    for _ in range(3):
        model(torch.randn(8, 1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    trained = ibp_margins(model, *batch, threat)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(trained, ibp_margins(model.eval(), *batch, threat))


def masked(kind, cnn):
    model = cnn().double()
    if kind == "channels":
        groups = [Group((Member(model[6], "6", "weight", dim=1, index=torch.arange(128) // 16),),
                        channels=8)]  # fmt: skip
        pruner = HarpPruner(model, 0.5, groups=groups)
    elif kind == "2:4":
        pruner = HydraPruner(model, pattern="2:4", exclude=[model[0], model[3]])
    else:
        pruner = HarpPruner(model, float(kind))
    pruner.set_phase("prune")
    for mask in pruner.masks:
        nn.init.normal_(mask.scores)
        mask.unfollowed = False
    pruner.update_masks()
    return model, pruner


@pytest.mark.parametrize("kind", ["0.5", "0.05", "2:4", "channels"])
def test_bounds_of_a_masked_network_are_those_of_its_finalized_form(cnn, batch, threat, kind):
    model, pruner = masked(kind, cnn)
    x, y = batch[0].double(), batch[1]
    found = ibp_margins(model, x, y, threat)
    plain = copy.deepcopy(model)
    finalize(plain)
    assert torch.equal(found, ibp_margins(plain, x, y, threat))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["0.5", "0.05", "channels"])
def test_gradients_to_weights_scores_and_rates(cnn, batch, kind, norm, check_gradients):
    model, pruner = masked(kind, cnn)
    threat = ThreatModel(norm, eps=0.02 if norm == "Linf" else 0.1)
    check_gradients(model, pruner, lambda net: ibp_margins(
        net, batch[0][:2].double(), batch[1][:2], threat))  # fmt: skip


def test_proofs_leave_the_model_as_it_was_and_agree_with_the_margins(cnn, batch, threat):
    model = cnn()
    model[0].eval()
    flags = [m.training for m in model.modules()]
    x, y = batch
    small = ThreatModel("Linf", eps=1e-4)
    right = model.eval()(x).argmax(1)
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    certifier = IBP(small)
    assert certifier(model, x, right).float().mean() > 0.5
    assert torch.equal(
        certifier(model, x, right), proved(certifier.margins(model, x, right), right)
    )
    assert not certifier(model, x, (right + 1) % 10).any()
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not certifier.margins(model, x, y).requires_grad


def test_wrappers_are_seen_through(cnn, batch, threat):
    model = cnn()
    wanted = IBP(threat).margins(model, *batch)
    compiled = torch.compile(model)
    for wrapped in (compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        assert torch.equal(IBP(threat).margins(wrapped, *batch), wanted)
        assert torch.equal(ibp_margins(wrapped.eval(), *batch, threat), wanted)


def test_bad_input(cnn, batch, threat):
    model, (x, y) = cnn(), batch
    with pytest.raises(ValueError, match="norm is L1; interval bounds know Linf and L2"):
        ibp_margins(model, x, y, ThreatModel("L1", eps=1.0))
    with pytest.raises(ValueError, match="labels are torch.int64 from .* to 10; legal"):
        ibp_margins(model, x, torch.full_like(y, 10), threat)
    with pytest.raises(ValueError, match="eps is -0.1"):
        ThreatModel("Linf", eps=-0.1)
    with pytest.raises(ValueError, match="outside the threat model's"):
        ibp_margins(model, x + 1, y, threat)
    for certify in (IBP(threat), IBP(threat).margins):
        with pytest.raises(ValueError, match="labels are"):
            certify(model, x, y + 10)


def test_bounds_under_autocast_are_those_without(cnn, batch, threat):
    model, (x, y) = cnn().eval(), batch
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        margins, proofs = ibp_margins(model, x, y, threat), IBP(threat).margins(model, x, y)
        regulariser = nrs_loss(model, x, threat)
    assert torch.equal(margins, ibp_margins(model, x, y, threat))
    assert torch.equal(proofs, IBP(threat).margins(model, x, y))
    assert torch.equal(regulariser, nrs_loss(model, x, threat))
