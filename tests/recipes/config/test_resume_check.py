"""The identity of a run: settings that change its weights, and a checkpoint by its content."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robust_plugin.recipes.config.resume_check import identity_of, refuse_other_settings
from robust_plugin.recipes.config.schema import DataConfig, RecipeConfig
from robust_plugin.recipes.papers.hydra import HydraConfig

CONFIG = HydraConfig()


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "cpu"},
        {"threads": 3},
        {"accumulate": 2},
        {"compile": True},
        {"data": DataConfig(workers=4)},
        {"prune": replace(CONFIG.prune, lr=3.0)},  # stages have an identity of their own
    ],
)
def test_settings_that_change_no_weight_of_all_stages_are_left_out(changed: Any) -> None:
    assert identity_of(replace(CONFIG, **changed)) == identity_of(CONFIG)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"data": DataConfig(batch_size=64)}, "data.batch_size was 128 and is now 64"),
        ({"scores": "snip"}, "scores was 'scaled_magnitude' and is now 'snip'"),
    ],
)
def test_other_settings_are_refused_by_name(changed: Any, message: str) -> None:
    now = identity_of(replace(CONFIG, **changed))
    refuse_other_settings(now, now, Path("runs"))
    with pytest.raises(ValueError, match=f"runs holds a run with other settings: {message}. Give"):
        refuse_other_settings(identity_of(CONFIG), now, Path("runs"))


def test_another_recipe_is_another_run() -> None:
    with pytest.raises(ValueError, match="recipe was 'HydraConfig' and is now 'RecipeConfig'"):
        refuse_other_settings(identity_of(CONFIG), identity_of(RecipeConfig()), Path("runs"))


def test_a_checkpoint_counts_by_its_content(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "copy", "other")]
    for path, value in zip(paths, (0.0, 0.0, 1.0), strict=True):
        save_file({"weight": torch.full((2,), value)}, path)
    one, copy, other = (identity_of(replace(CONFIG, checkpoint=path)) for path in paths)
    assert one == copy != other
    assert one["checkpoint"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="no checkpoint at absent.pt"):
        identity_of(replace(CONFIG, checkpoint=Path("absent.pt")))


def test_runs_that_are_older_than_a_setting_go_on() -> None:
    now = identity_of(CONFIG)
    older = {name: value for name, value in now.items() if name not in ("round_to", "precision")}
    older["data"] = {**now["data"], "workers": 3}
    del older["data"]["extra_share"]
    refuse_other_settings(older, now, Path("runs"))
    with pytest.raises(ValueError, match="round_to was 1 and is now 8"):
        refuse_other_settings(older, {**now, "round_to": 8}, Path("runs"))


def test_a_run_on_other_images_is_refused_and_an_older_one_without_a_digest_is_not() -> None:
    now = identity_of(CONFIG, content="a")
    refuse_other_settings(now, identity_of(CONFIG, content="a"), Path("runs"))
    refuse_other_settings(identity_of(CONFIG), now, Path("runs"))
    with pytest.raises(ValueError, match="runs holds a run on other images: the files"):
        refuse_other_settings(now, identity_of(CONFIG, content="b"), Path("runs"))
