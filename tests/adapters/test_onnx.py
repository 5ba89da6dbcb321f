"""ONNX files: what they compute in onnxruntime is what torch computes."""

import builtins
import copy
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from robust_plugin import HydraPruner, MagnitudePruner, finalize
from robust_plugin.adapters import onnx as adapter
from robust_plugin.adapters.onnx import OnnxFile, export_onnx
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
from robust_plugin.export.compressed import load_compressed, save_compressed
from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_files import load_sparse, save_sparse
from robust_plugin.export.csr_layers import SparseConv2d, SparseLinear
from robust_plugin.export.replace_layers import with_layers


def run(path, *inputs):
    """The file in a session of its own, with nothing of ours."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    fed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, fed)[0])


def finalized(cnn, train):
    model = cnn()
    pruner = HydraPruner(model, 0.1)
    train(pruner, "prune")
    train(pruner, "finetune")
    pruner.finalize()
    return model


def shrunk(cnn, train):
    """The finalized network without half the channels between its convolutions, by hand."""
    model = finalized(cnn, train)
    first, norm, second, head = model[0], model[1], model[3], model[6]
    small = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        small[0].weight.copy_(first.weight[::2])
        small[0].bias.copy_(first.bias[::2])
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(small[1], key).copy_(getattr(norm, key)[::2])
        small[3].weight[:4, :2] = second.weight[:4, ::2]
        small[3].weight[4:, 2:] = second.weight[4:, ::2]
        small[3].bias.copy_(second.bias)
    small[6].load_state_dict(head.state_dict())
    return small


def in_csr(cnn, train):
    model = finalized(cnn, train).eval()
    new = {layer: SparseConv2d.of(layer) for layer in (model[0], model[3])}
    return with_layers(model, {**new, model[6]: SparseLinear.of(model[6])})


@pytest.mark.parametrize("form", [finalized, shrunk, in_csr])
@pytest.mark.parametrize("examples", [1, 5])
def test_the_forms_of_a_pruned_network(form, examples, cnn, train, tmp_path):
    model = form(cnn, train)
    modes = {name: module.training for name, module in model.named_modules()}
    path = tmp_path / "model.onnx"
    written = export_onnx(model, path, torch.rand(examples, 1, 8, 8))
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert written.path == path and written.size == os.path.getsize(path)
    assert written.batch_sizes == (examples, 1, 2 * examples) and written.difference < 1e-5
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    model.eval()
    for batch in (1, 5, 7):
        x = torch.rand(batch, 1, 8, 8)
        torch.testing.assert_close(run(path, x), model(x).detach(), rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(str(path), full_check=True)


def test_what_was_written_prints_as_a_line():
    written = OnnxFile(Path("runs/net.onnx"), 12345, 1.234e-7, (2, 1, 4))
    assert str(written) == (
        "net.onnx: 12,345 bytes, outputs within 1.2e-07 of torch's (relative to the largest) at "
        "batch sizes 1, 2, 4"
    )


def test_zeros_and_sizes_are_in_the_file(cnn, train, tmp_path):
    """CSR is exported as the dense layer it came from; removed channels are gone."""
    arrays = {}
    for form in (finalized, in_csr, shrunk):
        torch.manual_seed(0)
        export_onnx(form(cnn, train), tmp_path / "m.onnx", torch.rand(2, 1, 8, 8))
        graph = onnx.load(tmp_path / "m.onnx").graph
        arrays[form] = [
            onnx.numpy_helper.to_array(each) for each in graph.initializer if len(each.dims) > 1
        ]
    for dense, csr in zip(arrays[finalized], arrays[in_csr], strict=True):
        assert np.array_equal(dense, csr)
    head = next(a for a in arrays[finalized] if a.size == 1280)
    assert np.count_nonzero(head) == 1280 - int(0.9 * 1280)
    assert sum(a.size for a in arrays[shrunk]) < sum(a.size for a in arrays[finalized])


class Residual(nn.Module):
    """One block with a shortcut between a stem and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.first, self.norm = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = x + self.second(self.norm(self.first(x)).relu())
        return self.head(nn.functional.max_pool2d(x.relu(), 2).flatten(1))


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 96, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(96, 96, 3, padding=1, groups=96),
        nn.BatchNorm2d(96),
        nn.Hardswish(),
        nn.Conv2d(96, 64, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@pytest.fixture(params=[Residual, depthwise])
def without_channels(request):
    """A network with a third of its channels left, masked and small, and what it computes."""
    model, x = request.param(), torch.rand(4, 3, 16, 16)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):  # a masked channel is a constant behind such a norm
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.3, 0.3), norm.running_var.uniform_(0.5, 1.5)
    model.eval()
    groups = channel_groups(model, x[:1])
    pruner = MagnitudePruner(model, 0.35, budget="channels", groups=groups, example_inputs=x[:1])
    masked = model(x).detach()
    removed = remove_channels(pruner, x)
    assert removed.parameters[1] < 0.5 * removed.parameters[0]
    return model, removed.model, x, masked


def parameters_in(path):
    return sum(np.prod(each.dims, dtype=int) for each in onnx.load(path).graph.initializer)


def test_removed_channels(without_channels, tmp_path):
    """The file computes what the masked network did, and holds only what is left of it."""
    model, small, x, masked = without_channels
    written = export_onnx(small, tmp_path / "small.onnx", x)
    torch.testing.assert_close(run(tmp_path / "small.onnx", x), masked, rtol=1e-4, atol=1e-4)
    plain = copy.deepcopy(model)
    finalize(plain)
    large = export_onnx(plain, tmp_path / "large.onnx", x)
    assert written.size < large.size
    assert parameters_in(written.path) < 0.5 * parameters_in(large.path)


def test_removed_channels_then_pruned_weights(without_channels, tmp_path):
    """Both kinds of pruning on one network: what is exported is the same network in every form."""
    _, small, x, _ = without_channels
    dense = sum(each.numel() * each.element_size() for each in small.state_dict().values())
    pruner = MagnitudePruner(small, 0.05)
    pruner.finalize()
    logits = small(x).detach()
    export_onnx(small, tmp_path / "m.onnx", x)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), logits, rtol=1e-4, atol=1e-4)
    packed = save_compressed(tmp_path / "c", small)
    assert packed.dense_size == dense and packed.size < 0.6 * dense
    emptied = copy.deepcopy(small)
    for parameter in emptied.parameters():
        nn.init.zeros_(parameter)
    emptied.load_state_dict(load_compressed(tmp_path / "c"))
    assert torch.equal(emptied(x), logits)
    in_csr = with_layers(
        small,
        {
            layer: (SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d).of(layer)
            for layer in small.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        },
    ).eval()
    torch.testing.assert_close(in_csr(x), logits, rtol=1e-4, atol=1e-4)
    export_onnx(in_csr, tmp_path / "csr.onnx", x)
    torch.testing.assert_close(run(tmp_path / "csr.onnx", x), logits, rtol=1e-4, atol=1e-4)
    save_sparse(tmp_path / "s", in_csr)
    assert torch.equal(load_sparse(tmp_path / "s", emptied)(x), in_csr(x))
    deployed, report = sparse(small, x)  # CSR where it was faster; the outputs either way
    torch.testing.assert_close(deployed(x), logits, rtol=1e-4, atol=1e-4)
    assert {layer.name for layer in report.layers} == {
        name for name, m in small.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }


def test_several_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, x, y):
            return self.first(x) * self.second(y)

    model, inputs = Two(), (torch.rand(1, 3), torch.rand(1, 5))
    export_onnx(model, tmp_path / "m", inputs)
    x, y = torch.rand(6, 3), torch.rand(6, 5)
    torch.testing.assert_close(run(tmp_path / "m", x, y), model(x, y).detach())


def test_another_network_in_the_file_is_caught(cnn, tmp_path, monkeypatch):
    """The exporter is made to write other weights; the old file stays."""
    path, x = tmp_path / "m.onnx", torch.rand(2, 1, 8, 8)
    export_onnx(cnn(), path, x)
    before = path.read_bytes()
    write = adapter._write
    monkeypatch.setattr(adapter, "_write", lambda model, *rest: write(cnn(3).eval(), *rest))
    with pytest.raises(ValueError, match=r"outputs differ from torch's by .*at batch size 2"):
        export_onnx(cnn(), path, x)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_a_network_that_depends_on_the_batch_size_is_caught(tmp_path):
    """By the exporter, or by the comparison at another batch size than it saw."""

    class Moody(nn.Module):
        def forward(self, x):
            return 2 * x if len(x) == 4 else x

    message = "torch cannot export Moody|cannot run the network at batch size|outputs differ from"
    with pytest.raises(ValueError, match=message):
        export_onnx(Moody(), tmp_path / "m", torch.rand(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_bad_input(cnn, batch, tmp_path):
    x = batch[0]
    model = cnn()
    pruner = MagnitudePruner(model, 0.1)
    with pytest.raises(ValueError, match="a pruner is attached.*finalize"):
        export_onnx(model, tmp_path / "m", x)
    pruner.finalize()
    with pytest.raises(ValueError, match="there is no folder"):
        export_onnx(model, tmp_path / "nowhere" / "m", x)
    for inputs in ((), torch.rand(()), torch.rand(0, 1, 8, 8), (x, x[:3]), (x, torch.rand(()))):
        with pytest.raises(ValueError, match="they need one batch size in common"):
            export_onnx(model, tmp_path / "m", inputs)
    with pytest.raises(ValueError, match="onnxruntime cannot run the network"):
        export_onnx(model.bfloat16(), tmp_path / "m", x.bfloat16())

    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, x

    with pytest.raises(TypeError, match="returns a tuple; wrap it"):
        export_onnx(Pair(), tmp_path / "m", x)
    assert list(tmp_path.iterdir()) == []


def test_what_to_install(cnn, batch, tmp_path, monkeypatch):
    load = builtins.__import__

    def without(name, *rest):
        if name == "onnxscript":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install onnx onnxruntime onnxscript"):
        export_onnx(cnn(), tmp_path / "m", batch[0])


def test_hooks_of_sparse_layers_are_in_the_file(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    model = with_layers(dense, {layer: SparseLinear.of(layer) for layer in (dense[0], dense[2])})
    model[2].register_forward_hook(lambda layer, args, out: 3 * out)
    x = torch.rand(4, 20)
    export_onnx(model, tmp_path / "net.onnx", x)
    assert torch.allclose(run(tmp_path / "net.onnx", x), 3 * dense(x), rtol=1e-4, atol=1e-5)
