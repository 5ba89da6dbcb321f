"""Removal of masked channels, and the files of the smaller network."""

import pytest
import torch
from wide_network import A, B, C, Wide, randomised, replay, sizes, wide_groups

from robust_plugin import HydraPruner, MagnitudePruner
from robust_plugin.channels.remove import load_into, remove, save
from robust_plugin.pruning import checkpoint

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def pruned():
    model = randomised(Wide(A, B, C))
    return MagnitudePruner(
        model, groups=wide_groups(model), rates={"left": 0.5, "right": 0.5, "both": 0.6}
    )


@pytest.mark.parametrize("finalized", [False, True])
def test_the_report_counts_the_network_that_is_left(finalized):
    pruner = pruned()
    logits = pruner.model(X).detach()
    if finalized:
        pruner.finalize()
    removed = remove(pruner, (X,), replay)
    assert removed.counts == {"left": 2, "right": 3, "both": 3}
    before, after = sizes(Wide(A, B, C)), sizes(Wide(2, 3, 3))
    assert removed.parameters == (before[0], after[0])
    assert removed.multiply_adds == (before[1], after[1])
    found = removed.model(X)
    torch.testing.assert_close(found, logits)
    assert removed.difference < 1e-5
    assert pruner.model.both.weight.shape == (C, A + B, 1, 1)  # the large network is as it was


def test_masks_that_still_move_are_not_removed():
    model = randomised(Wide(A, B, C))
    pruner = HydraPruner(model, 0.5, groups=wide_groups(model))
    pruner.set_phase("prune")
    with pytest.raises(ValueError, match="the phase is 'prune', in which masks still move"):
        remove(pruner, (X,), replay)


def test_groups_of_weights_are_refused(cnn, batch):
    with pytest.raises(ValueError, match="group 0.weight is not of channels"):
        remove(MagnitudePruner(cnn(), 0.5), (batch[0],), replay)


def test_training_after_finalize_is_found():
    pruner = pruned()
    pruner.finalize()
    with torch.no_grad():
        for parameter in pruner.model.parameters():
            parameter += 0.1  # pruned weights are zero no longer
    with pytest.raises(ValueError, match="differs from the masked one .* trained on after final"):
        remove(pruner, (X,), replay)


def test_a_file_gives_the_small_network_back(tmp_path):
    pruner = pruned()
    removed = remove(pruner, (X,), replay)
    save(tmp_path / "small", removed)
    torch.manual_seed(9)
    fresh = Wide(A, B, C).eval()
    loaded = load_into(tmp_path / "small", fresh, (X,), replay)
    assert torch.equal(loaded(X), removed.model(X))
    assert fresh.both.weight.shape == (C, A + B, 1, 1)


def test_files_of_something_else(tmp_path, cnn):
    save(tmp_path / "small", remove(pruned(), (X,), replay))
    with pytest.raises(ValueError, match="small cuts .*, which Sequential has not"):
        load_into(tmp_path / "small", cnn(), (X,), replay)
    with pytest.raises(ValueError, match="is of another network: .* is torch.float32 .*float64"):
        load_into(tmp_path / "small", Wide(A, B, C).double(), (X,), replay)
    checkpoint.save(tmp_path / "whole", model=Wide(A, B, C))
    with pytest.raises(ValueError, match="whole holds no removed channels"):
        load_into(tmp_path / "whole", Wide(A, B, C), (X,), replay)
    with pytest.raises(ValueError, match="there is no folder"):
        save(tmp_path / "absent" / "small", remove(pruned(), (X,), replay))
