"""HYDRA as in its paper: learned masks, patterns and excluded layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from paper_recipes import SIZES, UNIFORM, kept, stage_state
from torch import nn


def test_hydra_moves_the_mask_away_from_magnitude(
    trained: Callable[..., tuple[nn.Module, Path]],
) -> None:
    model, folder = trained("hydra", prune={"epochs": 8, "lr": 1.0})
    dense = stage_state(folder, "pretrain.best")
    largest = set(dense["3.weight"].abs().flatten().topk(UNIFORM["3.weight"]).indices.tolist())
    ours = set(model.state_dict()["3.weight"].flatten().nonzero().flatten().tolist())
    assert len(ours) == len(largest) and ours != largest


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_hydra_by_pattern(
    pattern: str, n: int, m: int, trained: Callable[..., tuple[nn.Module, Path]]
) -> None:
    model, _ = trained("hydra", pattern=pattern)  # the pattern implies the density
    covered = 0
    for name, size in SIZES.items():
        weight = model.state_dict()[name]
        if weight.shape[1] % m:  # three input channels
            assert int(weight.count_nonzero()) == size  # left dense
            continue
        counts = (weight.movedim(1, -1).reshape(-1, m) != 0).sum(1)  # along the input channels
        assert counts.eq(n).all()
        covered += 1
    assert covered == 2


def test_excluded_layers_stay_dense(trained: Callable[..., tuple[nn.Module, Path]]) -> None:
    model, _ = trained("hydra", exclude=["6"])
    found = kept(model)
    assert found["6.weight"] == SIZES["6.weight"]
    assert found["3.weight"] == UNIFORM["3.weight"]
