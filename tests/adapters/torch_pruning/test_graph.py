"""The calls of torch-pruning: tracing, and cutting by a history."""

import subprocess
import sys

import pytest
from channel_networks import build  # noqa: E402
from pruned_channels import X, Y, attached, pruned
from torch import nn

from robust_plugin.adapters.torch_pruning import (
    channel_groups,
    remove_channels,
)
from robust_plugin.adapters.torch_pruning.graph import as_tuple, replay


def test_another_forward_is_named():
    model, pruner = attached()
    for call in (
        lambda x: channel_groups(build("resnet18"), x),
        lambda x: remove_channels(pruner, x),
    ):
        for inputs in (X[:1, :1], (X[:1], X[:1])):
            with pytest.raises(
                ValueError, match="Sequential does not run on example_inputs of shapes"
            ):
                call(inputs)


def test_a_forward_that_returns_nothing_to_compare_is_named():
    class Classes(nn.Module):
        def forward(self, x):
            return x.flatten(1).argmax(1)

    with pytest.raises(ValueError, match="Classes returns no floating-point tensors"):
        channel_groups(Classes(), X)


def test_a_recorded_history_cuts_the_same_channels_again_and_keeps_flags():
    model, pruner = pruned("cnn")
    removed = remove_channels(pruner, X)
    plain = build("cnn").eval()
    first = next(plain.parameters())
    first.requires_grad_(False)
    replay(plain, (X[:1],), removed.history)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in removed.model.parameters()]
    assert not plain.training and not next(plain.parameters()).requires_grad
    assert all(p.requires_grad for p in list(plain.parameters())[1:])


def test_inputs_become_a_tuple_once():
    assert as_tuple(X) == (X,) and as_tuple((X, Y)) == (X, Y)


def test_without_the_library_one_sentence_says_what_to_type():
    code = (
        "import sys\n"
        "sys.modules['torch_pruning'] = None\n"
        "try:\n"
        "    import robust_plugin.adapters.torch_pruning\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "channel pruning needs torch-pruning; pip install torch-pruning\n"
