"""Copies with other layers in place of some: hooks and shared layers are kept."""

import copy

import pytest
import torch
from sparse_networks import IMAGES, Residual, input_gradient, network
from torch import nn

from robust_plugin.export.csr import sparse
from robust_plugin.export.csr_files import load_sparse, save_sparse
from robust_plugin.export.csr_layers import SparseLayer, SparseLinear
from robust_plugin.export.replace_layers import dense_copy, with_layers


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


def test_a_layer_is_replaced_under_all_its_names():
    model, x = Residual().eval(), torch.rand(2, 16, 6, 6)
    other = nn.Conv2d(16, 16, 3, padding=1)
    found = with_layers(model, {model.conv: other})
    assert found.conv is found.again is other
    assert found.head is not model.head and model.conv is model.again is not other
    by_hand = copy.deepcopy(model)
    by_hand.conv = by_hand.again = other
    assert torch.equal(found(x), by_hand(x))


def test_a_dense_copy_has_no_sparse_layer_and_the_same_weights():
    model = network(nn.ReLU())
    sparse_model = with_layers(model, {model[3]: SparseLinear.of(model[3])})
    assert any(isinstance(layer, SparseLayer) for layer in sparse_model.modules())
    dense = dense_copy(sparse_model)
    assert not any(isinstance(layer, SparseLayer) for layer in dense.modules())
    assert torch.equal(dense[3].weight, model[3].weight)
    assert torch.equal(dense[3].bias, model[3].bias)


def test_a_hook_that_cannot_be_copied_is_named():
    class Holding:
        def __call__(self, layer, args):
            return None

        def __deepcopy__(self, memo):
            raise TypeError("holds a lock")

    model = network(nn.ReLU())
    replacement = SparseLinear.of(model[3])
    model[3].register_forward_pre_hook(Holding())
    with pytest.raises(ValueError, match="a hook of a Linear cannot be copied .*holds a lock"):
        with_layers(model, {model[3]: replacement})
