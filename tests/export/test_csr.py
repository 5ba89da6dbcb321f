"""The choice of CSR layers: where they were timed faster, with the same outputs and gradients."""

import copy
import warnings

import pytest
import torch
from sparse_networks import IMAGES, Residual, input_gradient, network, pruned
from torch import nn

from robust_plugin import MagnitudePruner
from robust_plugin.export import csr
from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_layers import SparseConv2d, SparseLayer, SparseLinear
from robust_plugin.export.replace_layers import dense_copy


def test_csr_is_taken_where_it_was_faster(faster):
    torch.manual_seed(0)
    model, x = Residual(), torch.rand(2, 16, 6, 6)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
    state = copy.deepcopy(model.state_dict())
    for factor, chosen in ((0.89, ("conv", "head")), (0.91, ())):
        faster(factor)
        exported, report = sparse(model, x)
        assert report.chosen == chosen
        assert (report.sparse, report.dense) == (factor if chosen else 1.0, 1.0)
        assert exported.again is exported.conv and exported is not model
        assert isinstance(exported.conv, SparseConv2d) == ("conv" in chosen)
        assert isinstance(exported.head, SparseLinear) == ("head" in chosen)
        torch.testing.assert_close(exported(x), expected, rtol=0, atol=1e-5)
        unused = next(layer for layer in report.layers if layer.name == "unused")
        assert unused.reason == "was not called in the forward pass" and unused.dense is None
        assert torch.equal(dense_copy(exported)(x), expected)
    assert model.training and type(model.conv) is nn.Conv2d
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_network_is_never_slower(faster):
    """Layers that are faster alone do not count where the whole network is not."""
    model, x = Residual(), torch.rand(2, 16, 6, 6)
    for factor in (0.98, 1.0, 1.2):
        faster(0.5, network=factor)
        exported, report = sparse(model, x)
        assert report.chosen == () and report.sparse == report.dense
        assert not any(isinstance(layer, SparseLayer) for layer in exported.modules())
        assert f"the whole network was not faster: {1 / factor:.2f}x" in str(report)
    faster(0.5, network=0.96)
    assert sparse(model, x)[1].chosen == ("conv", "head")


def test_what_stays_dense_and_why(faster, monkeypatch):
    faster(0.1)

    class Other(nn.Linear):
        pass

    model = nn.Sequential(
        pruned(nn.Conv2d(4, 8, 3), 0.1),
        nn.Flatten(),
        pruned(nn.Linear(8 * 16, 32), 0.6),
        pruned(Other(32, 32)),
        pruned(nn.Linear(32, 8), 0.1),
    )
    x = torch.rand(5, 4, 6, 6)
    monkeypatch.setattr(csr, "_MOST_BYTES", 36 * 16 * 4 - 1)
    exported, report = sparse(model, x)
    assert [layer.reason for layer in report.layers] == [
        "would unfold to 0 MiB",
        "keeps more than 30%",
        "is a Other",
        "10.0x",
    ]
    table = str(report)
    assert all(line in table for line in ("keeps more than 30%", "10.0x", "1 of 4 layers in CSR"))
    monkeypatch.setattr(csr, "_MOST_BYTES", 36 * 16 * 4)
    assert sparse(model, x)[1].chosen == ("0", "4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_mkl_does_not_multiply_stay_dense(faster, dtype):
    faster(0.1)
    model = pruned(nn.Linear(64, 64)).to(dtype)
    x = torch.rand(2, 64).to(dtype)
    exported, report = sparse(model, x)
    # Where torch comes to support them, they have to be right.
    assert report.chosen or report.layers[0].reason.startswith("torch: ")
    torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-2)


def test_a_build_without_sparse_products_stays_dense(faster, monkeypatch):
    faster(0.1)

    def missing(self, columns):
        raise RuntimeError("Calling addmm on a sparse CPU tensor requires MKL.\nmore")

    monkeypatch.setattr(SparseLayer, "product", missing)
    model, x = Residual(), torch.rand(2, 16, 6, 6)
    exported, report = sparse(model, x)
    assert report.chosen == ()
    assert report.layers[0].reason == ("torch: Calling addmm on a sparse CPU tensor requires MKL.")
    assert torch.equal(exported(x), copy.deepcopy(model).eval()(x))


def test_a_parent_that_reads_its_layers_weights_stays_dense(faster):
    """nn.TransformerEncoderLayer does, on its fast path."""
    faster(0.1)
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    pruned(model.linear1), pruned(model.linear2)
    x = torch.rand(2, 5, 16)
    exported, report = sparse(model, x)
    assert report.chosen == ()
    assert "the network does not run with it" in str(report)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-6)


def test_bad_input(cnn, batch):
    model = cnn()
    pruner = MagnitudePruner(model, 0.05)
    with pytest.raises(ValueError, match="a pruner is attached.*finalize"):
        sparse(model, batch[0])
    pruner.finalize()
    sparse(model, (batch[0],))
    with pytest.raises(ValueError, match="0.weight is not on the CPU; call model.cpu"):
        sparse(copy.deepcopy(model).to("meta"), batch[0])

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="returns a tuple; wrap it"):
        sparse(Two(), batch[0])


def test_an_export_by_the_clock():
    """Nothing faked: the choice follows the timings in the report."""
    torch.manual_seed(0)
    model = nn.Sequential(pruned(nn.Linear(1024, 1024), 0.01), nn.ReLU(), nn.Linear(1024, 4))
    x = torch.rand(16, 1024)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported, report = sparse(model, x)
    first, last = report.layers
    if report.chosen:
        assert report.chosen == ("0",) and first.sparse < 0.9 * first.dense
        assert report.sparse <= 0.97 * report.dense
    else:  # a very busy machine
        assert first.sparse > 0.9 * first.dense or "not faster" in first.reason
    assert last.reason == "keeps more than 30%" and report.threads == torch.get_num_threads()
    torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-5)


class Through(torch.autograd.Function):
    """A step, whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Step(nn.Module):
    def forward(self, x):
        return Through.apply(x)


def test_a_straight_through_estimator_is_kept(faster):
    faster(0.5)
    model = network(Step())
    exported, report = sparse(model, IMAGES)
    assert report.chosen == ("0", "3")
    wanted = input_gradient(model, IMAGES)
    assert bool(wanted.any())
    assert torch.allclose(input_gradient(exported, IMAGES), wanted, rtol=1e-4, atol=1e-5)


class ByKind(nn.Module):
    """Another backward pass where its layer is an nn.Linear: the outputs are the same."""

    def __init__(self):
        super().__init__()
        self.layer = pruned(nn.Linear(8 * 36, 8 * 36), 0.1)

    def forward(self, x):
        out = self.layer(x)
        return 2 * out - out.detach() if isinstance(self.layer, nn.Linear) else out


def test_a_network_that_loses_its_backward_pass_stays_dense(faster):
    faster(0.5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), ByKind(), pruned(nn.Linear(8 * 36, 5), 0.5)).eval()
    x = torch.rand(3, 8, 6, 6)
    exported, report = sparse(model, x)
    assert report.chosen == () and not any(isinstance(m, SparseLayer) for m in exported.modules())
    assert report.layers[0].reason == "the gradients of the network's inputs differ with it"
    assert torch.equal(input_gradient(exported, x), input_gradient(model, x))


def test_a_layer_with_a_forward_of_its_own_stays_dense(faster):
    faster(0.5)
    model = network(nn.ReLU())
    own = model[3].forward
    model[3].forward = lambda x: own(x)
    _, report = sparse(model, IMAGES)
    assert report.chosen == ("0",) and report.layers[1].reason == "has a forward of its own"


def test_networks_without_gradients_are_exported_as_before(faster):
    faster(0.5)

    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    exported, report = sparse(Frozen(*network(nn.ReLU())), IMAGES)
    assert report.chosen == ("0", "3") and not exported(IMAGES).requires_grad
