"""Sparse deployment: the same outputs, CSR only where it was timed faster, no slower network."""

import copy
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import MagnitudePruner
from robust_plugin.export import csr, csr_layers
from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_files import load_sparse, save_sparse
from robust_plugin.export.csr_layers import SparseConv2d, SparseLayer, SparseLinear, dense_copy
from robust_plugin.export.two_four import obstacle, semi_structured
from robust_plugin.pruning.checkpoint import save
from robust_plugin.runtime.timing import alternating


def pruned(layer, kept=0.05):
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < kept)
    return layer.eval().requires_grad_(False)


class Residual(nn.Module):
    """A layer used twice, one under two names, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.conv = pruned(nn.Conv2d(16, 16, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(16)
        self.again = self.conv
        self.unused = pruned(nn.Linear(16, 16))
        self.head = pruned(nn.Linear(16, 8))

    def forward(self, x):
        x = x + F.relu(self.norm(self.conv(x)))
        return self.head((x + self.again(x)).mean((2, 3)))


@pytest.fixture
def faster(monkeypatch):
    """A clock on which CSR layers, and networks that hold some, take ``factor`` of the time."""

    def set_factor(layers, network=None):
        def timed(first, second, *, seconds):
            first(), second()
            whole = seconds == 1.0
            return 1.0, layers if not whole or network is None else network

        monkeypatch.setattr(csr, "alternating", timed)

    return set_factor


@pytest.mark.parametrize("shape", [(20,), (1, 20), (64, 20), (3, 5, 20), (0, 20)])
@pytest.mark.parametrize("kept", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_linear_layer_equals_the_dense_one(shape, kept, bias):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        layer = pruned(nn.Linear(20, 6, bias=bias, dtype=dtype), kept)
        x = torch.randn(shape, dtype=dtype)
        found = SparseLinear.of(layer)(x)
        torch.testing.assert_close(found, layer(x), rtol=0, atol=tolerance)
        assert found.is_contiguous()


GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 4, "bias": False},
    {"kernel_size": 3, "groups": 8, "padding": "same"},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_sparse_convolution_equals_the_dense_one(geometry, monkeypatch):
    layer = pruned(nn.Conv2d(8, 16, **geometry), 0.2)
    candidate = SparseConv2d.of(layer)
    inputs = {
        "batch": torch.randn(3, 8, 9, 7),
        "one": torch.randn(1, 8, 9, 7),
        "none": torch.randn(0, 8, 9, 7),
        "no batch": torch.randn(8, 9, 7),
        "channels last": torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last),
        "a view": torch.randn(2, 10, 7, 9).transpose(2, 3)[:, 1:9],
        "expanded": torch.randn(1, 8, 9, 1).expand(2, 8, 9, 7),
    }
    for name, x in inputs.items():
        before, found = x.clone(), candidate(x)
        torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5, msg=name)
        assert found.is_contiguous() and torch.equal(x, before)
    monkeypatch.setattr(csr_layers, "_CACHE", 2 * candidate.unfolded_bytes(x))
    x = torch.randn(5, 8, 9, 7)  # two examples, two, and one
    torch.testing.assert_close(candidate(x), layer(x), rtol=0, atol=1e-5)
    unfolded = F.unfold(
        F.pad(inputs["one"], candidate.pads),
        layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
    )
    assert candidate.unfolded_bytes(inputs["batch"]) == 4 * unfolded.numel()
    assert candidate.unfolded_bytes(inputs["no batch"]) == 4 * unfolded.numel()
    assert torch.equal(candidate.dense_layer().weight, layer.weight)
    with pytest.raises(RuntimeError):
        candidate(torch.randn(2, 16, 9, 7))  # never a view of other memory


def test_a_map_smaller_than_the_kernel_is_refused():
    candidate = SparseConv2d.of(pruned(nn.Conv2d(8, 16, 4)))
    with pytest.raises(RuntimeError):
        candidate(torch.randn(2, 8, 2, 9))


def test_training_is_refused():
    layer = SparseLinear.of(pruned(nn.Linear(8, 4))).train()
    with pytest.raises(ValueError, match="SparseLinear is for inference; call model.eval"):
        layer(torch.rand(2, 8))


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
    for call in (lambda: sparse(model, batch[0]), lambda: semi_structured(model)):
        with pytest.raises(ValueError, match="a pruner is attached.*finalize"):
            call()
    pruner.finalize()
    sparse(model, (batch[0],))
    with pytest.raises(ValueError, match="0.weight is not on the CPU; call model.cpu"):
        sparse(copy.deepcopy(model).to("meta"), batch[0])

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="returns a tuple; wrap it"):
        sparse(Two(), batch[0])


def test_alternating_takes_turns_and_medians(monkeypatch):
    order, now = [], [0.0]
    durations = {"a": iter([9, 1, 1, 1, 5, 1]), "b": iter([9, 2, 3, 2, 2, 7])}
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call(name):
        order.append(name)
        now[0] += next(durations[name])

    assert alternating(lambda: call("a"), lambda: call("b"), seconds=0) == (1, 2)
    assert order == ["a", "b"] * 6


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


def test_save_and_load(faster, tmp_path):
    faster(0.1)
    model, x = Residual().double(), torch.rand(2, 16, 6, 6).double()
    exported, _ = sparse(model, x)
    save_sparse(tmp_path / "s", exported)
    torch.manual_seed(9)
    fresh = Residual().double()
    loaded = load_sparse(tmp_path / "s", fresh)
    assert type(loaded.conv) is SparseConv2d and type(fresh.conv) is nn.Conv2d
    assert loaded.again is loaded.conv and not loaded.training
    assert torch.equal(loaded(x), exported(x))
    state = exported.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())
    assert state["conv.values"].dtype == torch.float64
    loaded.load_state_dict(state)


def test_files_that_do_not_fit(faster, cnn, tmp_path):
    faster(0.1)
    model, x = Residual(), torch.rand(2, 16, 6, 6)
    exported, _ = sparse(model, x)
    path = tmp_path / "s"
    for spoil, message in {
        "column": "column index|col_indices",
        "row": "crow_indices",
        "missing": "col_indices",
        "bias": "head.bias",
    }.items():
        spoiled = copy.deepcopy(exported)
        if spoil == "column":
            spoiled.conv.col_indices[3] = 10**6
        elif spoil == "row":
            spoiled.conv.crow_indices[-1] += 1
        elif spoil == "missing":
            del spoiled.head.col_indices
        else:
            spoiled.head.bias = None
        save_sparse(path, spoiled)
        with pytest.raises(ValueError, match=f"does not fit this network: .*({message})"):
            load_sparse(path, model)
    save_sparse(path, exported)
    with pytest.raises(ValueError, match="does not fit this network"):
        load_sparse(path, cnn())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load_sparse(path, model)
    save(path, model=model)
    with pytest.raises(ValueError, match="was not written by save_sparse"):
        load_sparse(path, model)


def two_four(rows=64, columns=128, dtype=torch.float16):
    layer = nn.Linear(columns, rows)
    MagnitudePruner(layer, pattern="2:4").finalize()
    return layer.to(dtype)


def test_what_can_be_compressed_for_cuda():
    assert obstacle(two_four()) is None
    assert obstacle(two_four(dtype=torch.bfloat16)) is None
    assert "float32; call model.half()" in obstacle(two_four(dtype=torch.float32))
    for rows, columns in ((48, 128), (64, 96)):
        found = obstacle(two_four(rows, columns))
        assert found == f"has {rows} x {columns} weights, no multiple of 32 x 64"
    spoiled = two_four()
    spoiled.weight.data[5, 4:7] = 1
    assert obstacle(spoiled) in (
        "keeps up to 3 of 4 weights",
        "keeps up to 4 of 4 weights",
    )
    denser = nn.Linear(128, 64)
    MagnitudePruner(denser, pattern="4:8").finalize()
    assert "of 4 weights" in obstacle(denser.half())
    sparser = nn.Linear(128, 64)
    MagnitudePruner(sparser, pattern="1:4").finalize()
    assert obstacle(sparser.half()) is None


def test_without_cuda_the_error_says_so():
    with pytest.raises(ValueError, match="need a CUDA device, and the network is on cpu.*sparse"):
        semi_structured(nn.Sequential(two_four()))


def test_the_layers_that_are_compressed(monkeypatch):
    """With torch's conversion replaced: which layers it is given, and what the copy computes."""
    given = []

    def convert(weight):
        assert weight.is_contiguous()
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    monkeypatch.setattr("robust_plugin.export.two_four._refuse_other_devices", lambda model: None)
    model = nn.Sequential(two_four(), nn.ReLU(), two_four(48, 64), nn.Linear(48, 4).half())
    exported, found = semi_structured(model)
    assert [torch.equal(a, model[0].weight) for a in given] == [True]
    assert found["0"] == "2:4" and "48 x 64" in found["2"] and "4 x 48" in found["3"]
    x = torch.rand(3, 128).half()
    assert torch.equal(exported(x), model(x)) and exported[0] is not model[0]
    with pytest.raises(ValueError, match="no layer can be compressed: 0 has 4 x 48 weights"):
        semi_structured(nn.Sequential(nn.Linear(48, 4).half()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's 2:4 kernels need CUDA")
def test_two_four_on_cuda():
    model = nn.Sequential(two_four(256, 256), nn.ReLU(), two_four(64, 256)).cuda()
    exported, found = semi_structured(model)
    assert set(found.values()) == {"2:4"}
    x = torch.rand(16, 256, device="cuda").half()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-2, atol=1e-2)
    dense = dense_copy(exported)
    assert torch.equal(dense[0].weight, model[0].weight)


# The backward pass: an attack on the exported network follows the same gradient.


def input_gradient(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    (grad,) = torch.autograd.grad((out * torch.arange(out.shape[1])).sum(), x)
    return grad


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


def network(*middle):
    torch.manual_seed(0)
    first, second = pruned(nn.Conv2d(3, 8, 3), 0.2), pruned(nn.Linear(8 * 36, 5), 0.2)
    return nn.Sequential(first, *middle, nn.Flatten(), second).eval()


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_a_straight_through_estimator_is_kept(faster):
    faster(0.5)
    model = network(Step())
    exported, report = sparse(model, IMAGES)
    assert report.chosen == ("0", "3")
    wanted = input_gradient(model, IMAGES)
    assert bool(wanted.any())
    assert torch.allclose(input_gradient(exported, IMAGES), wanted, rtol=1e-4, atol=1e-5)


def test_backward_hooks_are_kept(faster, tmp_path):
    faster(0.5)
    model = network(nn.ReLU())
    without = input_gradient(model, IMAGES)
    model[3].register_full_backward_hook(lambda layer, grad_input, _: (-2 * grad_input[0],))
    exported, report = sparse(model, IMAGES)
    assert report.chosen == ("0", "3") and type(exported[3]) is SparseLinear
    save_sparse(tmp_path / "net", exported)
    for found in (exported, load_sparse(tmp_path / "net", model), dense_copy(exported)):
        grad = input_gradient(found.eval(), IMAGES)
        assert torch.allclose(grad, -2 * without, rtol=1e-4, atol=1e-5)


def test_forward_hooks_of_a_sparse_layer_stay_when_it_is_dense_again(faster):
    faster(0.5)
    exported, _ = sparse(network(nn.ReLU()), IMAGES)
    exported[3].register_forward_hook(lambda layer, args, out: 3 * out)
    exported[0].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    assert torch.allclose(dense_copy(exported)(IMAGES), exported(IMAGES), rtol=1e-4, atol=1e-5)


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
    assert obstacle(model[3]) == "has a forward of its own"


def test_networks_without_gradients_are_exported_as_before(faster):
    faster(0.5)

    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    exported, report = sparse(Frozen(*network(nn.ReLU())), IMAGES)
    assert report.chosen == ("0", "3") and not exported(IMAGES).requires_grad
