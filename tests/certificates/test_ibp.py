import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

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
from robust_plugin.certificates import propagation as propagation_module
from robust_plugin.certificates.checks import checked_margins, proved
from robust_plugin.certificates.propagation import Propagation
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


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_single_layer_is_a_network(norm, masked):
    layer, threat = nn.Linear(12, 4), ThreatModel(norm, eps=0.1)
    x, y = torch.rand(5, 12), torch.tensor([0, 1, 2, 3, 0])
    if masked:
        HydraPruner(layer, 0.5)
    found = ibp_margins(layer, x, y, threat)
    torch.testing.assert_close(found, ibp_margins(nn.Sequential(layer), x, y, threat))
    assert torch.equal(IBP(threat)(layer, x, y), proved(found, y))
    found.sum().backward()
    assert any(p.grad is not None for p in layer.parameters())
    with pytest.raises(ValueError, match="is Softmax.*, of which there are no interval bounds"):
        ibp_margins(nn.Softmax(1), x, y, threat)


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


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.last = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))

    def forward(self, x):
        x = x.flatten(1)
        a, b = torch.relu(self.one(x)), torch.sigmoid(self.two(x))
        return self.last(torch.cat([a * self.scale + 1 - b, a - b / self.scale.abs().amax()], 1))


def test_sums_differences_and_constants_equal_interval_arithmetic_by_hand():
    model = Branches().double()
    x, y = torch.rand(2, 1, 2, 2).double(), torch.tensor([0, 2])
    found = ibp_margins(model, x, y, ThreatModel("Linf", eps=0.1))
    low, high = (x - 0.1).clamp(0, 1).flatten(1), (x + 0.1).clamp(0, 1).flatten(1)

    def linear(layer, low, high):
        plus, minus = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        bias = layer.bias
        return low @ plus.T + high @ minus.T + bias, high @ plus.T + low @ minus.T + bias

    a = [v.relu() for v in linear(model.one, low, high)]
    b = [v.sigmoid() for v in linear(model.two, low, high)]
    s = model.scale
    scaled = [torch.minimum(a[0] * s, a[1] * s), torch.maximum(a[0] * s, a[1] * s)]
    low = torch.cat([scaled[0] + 1 - b[1], a[0] - b[1] / 2], 1)
    high = torch.cat([scaled[1] + 1 - b[0], a[1] - b[0] / 2], 1)
    for i in range(2):
        for j in range(3):
            row = model.last.weight[y[i]] - model.last.weight[j]
            total = (row.clamp(min=0) * low[i] + row.clamp(max=0) * high[i]).sum()
            total = total + model.last.bias[y[i]] - model.last.bias[j]
            assert found[i, j].item() == pytest.approx(total.item(), abs=1e-12)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_bound_of_a_random_network_is_above_what_is_found(random_network, highest_excess, norm):
    for seed in range(100, 150):
        model, x, y = random_network(seed)
        eps = [0.01, 0.05, 0.3][seed % 3] * (1 if norm == "Linf" else 5)
        threat = ThreatModel(norm, eps=eps)
        margins = ibp_margins(model, x, y, threat)
        assert highest_excess(model, x, y, threat, margins) <= 0, seed


def test_a_box_clipped_to_the_batchs_own_range_would_be_caught(batch, highest_excess, monkeypatch):
    """As in the official code; where bounds are exact, the fuzz sees any clip that is too much."""
    model, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), batch[1]
    x, threat = 0.3 + 0.1 * batch[0], ThreatModel("Linf", eps=0.05)
    assert highest_excess(model, x, y, threat, ibp_margins(model, x, y, threat)) <= 0
    whole = propagation_module.input_set

    def clipped(x, threat):
        low, high = float(x.min()), float(x.max())
        return whole(x, ThreatModel("Linf", eps=threat.eps, low=low, high=high))

    monkeypatch.setattr(propagation_module, "input_set", clipped)
    assert highest_excess(model, x, y, threat, ibp_margins(model, x, y, threat)) > 0.01


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


def test_what_a_trace_does_not_see_is_refused(batch, threat):
    """Without the refusal each of these was proved wrongly: the worst margin is -.11."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.eye_(model[0].weight)
    x, y = torch.tensor([[0.7, 0.45]]), torch.tensor([0])
    assert IBP(threat)(model, x, y).item() == (2 * threat.eps < 0.25)
    hook = model[0].register_forward_hook(lambda m, args, out: out - torch.tensor([0.16, 0.0]))
    with pytest.raises(ValueError, match=r"layer '0' has a forward hook, .*<lambda>"):
        IBP(threat)(model, x, y)
    hook.remove()
    hook = model.register_forward_pre_hook(lambda m, args: (args[0] - 0.16,))
    with pytest.raises(ValueError, match="the model has a forward hook"):
        IBP(threat)(model, x, y)
    hook.remove()
    model.forward = lambda x: nn.Sequential.forward(model, x) - torch.tensor([0.16, 0.0])
    with pytest.raises(ValueError, match="the model has a forward of its own"):
        IBP(threat)(model, x, y)


def test_wrappers_are_seen_through(cnn, batch, threat):
    model = cnn()
    wanted = IBP(threat).margins(model, *batch)
    compiled = torch.compile(model)
    for wrapped in (compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        assert torch.equal(IBP(threat).margins(wrapped, *batch), wanted)
        assert torch.equal(ibp_margins(wrapped.eval(), *batch, threat), wanted)


def test_masks_of_torch_are_seen(cnn, batch, threat):
    model = cnn().eval()
    plain = IBP(threat).margins(model, *batch)
    prune.l1_unstructured(model[0], "weight", 0.5)
    masked = IBP(threat).margins(model, *batch)
    prune.remove(model[0], "weight")
    assert not torch.equal(masked, plain)
    assert torch.equal(masked, IBP(threat).margins(model, *batch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_proves_nothing(cnn, batch, threat, dtype):
    with pytest.raises(ValueError, match="whose rounding is larger than margins"):
        IBP(threat)(cnn().to(dtype), batch[0].to(dtype), batch[1])


def test_relu_inputs_come_with_the_batchnorm_before_them(cnn, batch, threat):
    model = cnn().eval()
    found = list(Propagation(model, batch[0], threat).relu_inputs())
    assert [gamma is None for _, gamma in found] == [False, True]
    assert found[0][1] is model[1].weight
    inside = model[1](model[0](batch[0]))
    assert ((found[0][0].lower <= inside) & (inside <= found[0][0].upper)).all()


class Calls(nn.Module):
    """A network with one call in its forward."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.last, self.call = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 10), call

    def forward(self, x):
        return self.last(self.call(self.conv(x)))


LEGAL = [
    lambda v: F.relu(v, inplace=True).flatten(1),
    lambda v: torch.flatten(v, start_dim=1),
    lambda v: F.dropout(v, training=False).flatten(1),
    lambda v: F.max_pool2d(v, 3, 1, 1).flatten(1),
    lambda v: F.avg_pool2d(v, 3, 1, 1).flatten(1),
    lambda v: (1 - v.tanh() * 3).flatten(1),
    lambda v: F.adaptive_avg_pool2d(v, 8).flatten(1),
    lambda v: torch.cat([v], 1).flatten(1),
    lambda v: v.mean((2, 3), keepdim=True).add(v).flatten(1),
]  # fmt: skip


@pytest.mark.parametrize("call", LEGAL)
def test_functions_have_rules_too(call, batch, highest_excess):
    model = Calls(call)
    threat = ThreatModel("Linf", eps=0.05)
    margins = ibp_margins(model, *batch, threat)
    assert highest_excess(model, *batch, threat, margins) <= 0
    logits = model(batch[0])
    exact = ibp_margins(model, *batch, ThreatModel("Linf", eps=0.0))
    assert torch.allclose(exact, logits.gather(1, batch[1][:, None]) - logits, atol=1e-5)


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.last, self.form = nn.Linear(64, 10), form

    def forward(self, x, scale=1.0):
        return self.form(self.last(x.flatten(1) * scale))


def test_an_option_is_at_its_default(batch, threat):
    model = Returns(torch.relu)
    plain = nn.Sequential(nn.Flatten(), model.last, nn.ReLU())
    assert torch.equal(ibp_margins(model, *batch, threat), ibp_margins(plain, *batch, threat))


class Twice(nn.Module):
    """An activation in place, of what the sum reads again."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.last, self.between = nn.Conv2d(1, 2, 1), nn.Linear(128, 10), between

    def forward(self, x):
        x = self.conv(x)
        return self.last((self.between(x) + x).flatten(1))


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


def sequential(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(128, 10))


BAD = [
    (sequential(nn.GELU()), "layer '1' is GELU.*no interval bounds"),
    (sequential(nn.GroupNorm(1, 2)), "layer '1' is GroupNorm"),
    (sequential(nn.LeakyReLU(-0.1)), "layer '1' is LeakyReLU"),
    (sequential(nn.Dropout(0.5)), "layer '1' drops at random"),
    (sequential(nn.BatchNorm2d(2, track_running_stats=False)), "layer '1' normalises by each"),
    (sequential(Subclass(2, 2, 1)), "operation 'conv2d'"),
    (nn.Sequential(nn.Flatten(0), nn.Linear(64, 10)), "'0' flattens dimensions 0 to -1"),
    (Calls(lambda v: v.view(v.size(0), -1)), r"'size' reshapes by hand; bounds need flatten\(1\)"),
    (Calls(lambda v: v.reshape(-1, 128)), r"reshapes by hand; bounds need flatten\(1\)"),
    (Calls(lambda v: v.flatten(1) if v.shape[0] else v), "cannot be traced"),
    (Calls(lambda v: v.flatten(1).expand(v.shape)), r"reshapes by hand"),
    (Calls(lambda v: v.mul(v).flatten(1)), "operation 'mul'"),
    (Calls(lambda v: v.softmax(1).flatten(1)), "operation 'softmax'"),
    (Calls(lambda v: v.mean(0).flatten(1)), "operation 'mean'"),
    (Calls(lambda v: F.dropout(v).flatten(1)), "operation 'dropout'"),
    (Calls(lambda v: v.flatten(1) if v.sum() > 0 else v), "cannot be traced"),
    (Returns(lambda v: {"logits": v}), "does not return"),
    (Returns(lambda v: (v, v)), "does not return"),
    (Twice(nn.Sequential(nn.Identity(), nn.ReLU(True))), "writes over a tensor that the network"),
    (Twice(lambda v: F.relu(v, True)), "writes over a tensor that the network"),
    (Twice(lambda v: v.relu_()), "writes over a tensor that the network"),
    (Twice(nn.ReLU(True)), "writes over a tensor that the network uses again"),
    (nn.Sequential(nn.Conv2d(1, 2, 3)), "does not return .batch, classes. logits"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_what_has_no_rule_raises_by_its_name(model, message, batch, threat):
    with pytest.raises(ValueError, match=message) as caught:
        ibp_margins(model, *batch, threat)
    assert str(caught.value).count("\n") <= 2


def test_dropout_at_rest_is_nothing(batch, threat):
    model = sequential(nn.Dropout(0.5), nn.Dropout2d(0.0)).eval()
    plain = nn.Sequential(model[0], *model[3:])
    assert torch.equal(ibp_margins(model, *batch, threat), ibp_margins(plain, *batch, threat))


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
