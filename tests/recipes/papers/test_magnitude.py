"""Magnitude pruning as in its paper: one-shot, and in rounds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paper_recipes import SIZES, UNIFORM, dense_weight, settings, stage_state, stages
from torch import nn

from robust_plugin.masks.select import kept_count
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.training.run import Run


def test_one_shot_keeps_the_largest_weights_of_the_dense_network(
    trained: Callable[..., tuple[nn.Module, Path]],
) -> None:
    model, folder = trained("magnitude")
    assert stages(folder) == ["pretrain", "finetune"]
    dense = load(folder / "pretrain.best.safetensors").tensors
    for name, count in UNIFORM.items():
        magnitudes = dense[f"model/{name}"].abs().flatten()
        largest = set(magnitudes.topk(count).indices.tolist())
        assert set(model.state_dict()[name].flatten().nonzero().flatten().tolist()) == largest


def test_iterative_prunes_in_even_steps_by_the_weights_as_they_are(
    trained: Callable[..., tuple[nn.Module, Path]],
) -> None:
    model, folder = trained("magnitude", rounds=3)
    assert stages(folder) == ["pretrain", "finetune-1", "finetune-2", "finetune"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
    density = {line["stage"]: line["density"] for line in lines}
    assert density["finetune-1"] == pytest.approx(0.1 ** (1 / 3), abs=0.01)
    assert density["finetune-2"] == pytest.approx(0.1 ** (2 / 3), abs=0.01)
    assert density["finetune"] == pytest.approx(0.1, abs=0.01)
    epochs = {stage: sum(line["stage"] == stage for line in lines) for stage in density}
    assert epochs["finetune-1"] + epochs["finetune-2"] + epochs["finetune"] == 4 + 6
    # The last mask is chosen by the magnitudes after fine-tuning of the remaining weights.
    before = stage_state(folder, "finetune-2")
    for name, count in UNIFORM.items():
        layer = name.removesuffix(".weight")
        last = int(kept_count(SIZES[name], 0.1 ** (2 / 3)))
        weight = dense_weight(before, layer).flatten().abs()
        final = model.state_dict()[name].flatten().nonzero().flatten()
        assert len(final) == count < last
        # No more weights than those of the round before are larger than the smallest kept one.
        threshold = weight[final].min()
        assert int((weight > threshold).sum()) <= last


def test_one_round_is_one_shot(tmp_path: Path) -> None:
    states = [
        train_recipe("magnitude", Run(tmp_path / name, settings("magnitude", **more))).state_dict()
        for name, more in (("a", {}), ("b", {"rounds": 1}))
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
