"""Networks that cannot be copied or changed are named, wherever one is asked for."""

import pytest
import torch
from torch import nn

from robust_plugin import MagnitudePruner, sparsity
from robust_plugin.adapters.onnx import export_onnx
from robust_plugin.adapters.torch_pruning import channel_groups
from robust_plugin.copies.deep_copy import copied
from robust_plugin.export.csr import sparse

X = torch.rand(2, 3, 8, 8)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())


class Keeping(nn.Module):
    """Keeps what it computed last, with its graph."""

    def __init__(self):
        super().__init__()
        self.net, self.last = net(), None

    def forward(self, x):
        self.last = self.net(x)
        return self.last


def keeping():
    model = Keeping()
    model(X)
    return model


def normed():
    model = net()
    torch.nn.utils.weight_norm(model[2])
    return model


CALLS = {
    "groups": lambda model, path: channel_groups(model, X),
    "sparse": lambda model, path: sparse(model, X),
    "onnx": lambda model, path: export_onnx(model, path, X),
    "pruner": lambda model, path: MagnitudePruner(model, 0.5),
    "sparsity": lambda model, path: sparsity(model, X),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: torch.jit.script(net()), "made by TorchScript and holds a graph"),
        (lambda: torch.jit.trace(net(), X), "made by TorchScript and holds a graph"),
        (lambda: torch.export.export(net(), (X,)).module(), "made by torch.export and holds"),
    ],
    ids=["script", "trace", "export"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_graphs_instead_of_layers(tmp_path, call, build, says):
    with pytest.raises(ValueError, match=f"model was {says}.*give the nn.Module that it was made"):
        CALLS[call](build(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["groups", "sparse", "onnx"])
def test_what_cannot_be_copied(tmp_path, call):
    with pytest.raises(ValueError, match="Keeping cannot be copied.*a forward pass left in an"):
        CALLS[call](keeping(), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="torch.nn.utils.remove_weight_norm"):
        CALLS[call](normed(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_that_a_hook_makes_have_no_channels_to_cut():
    model = normed().requires_grad_(False)
    model(X)  # now the weight is a plain tensor, and a copy is made without a word
    copied(model)
    with pytest.raises(ValueError, match="the weight of layer '2' is no parameter but made by a"):
        channel_groups(model, X)


def test_a_traced_network_of_layers_is_one_of_layers():
    model = torch.fx.symbolic_trace(net())
    assert len(MagnitudePruner(model, 0.5).groups) == 2
