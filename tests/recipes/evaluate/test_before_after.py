"""Runs that remove channels: the small network computes the same, and bad settings are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robust_plugin.masks.mask_state import mask_of
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.resume_check import refuse_other_settings
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.evaluate.before_after import BeforeAfter, before_after, compared
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.training import loop
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.weights_or_channels import small_network

pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")
CHANNELS = ("--structure=channels", "--budget=channels", "--density=0.5")
CONV, WIDE = "0", "3"  # the groups of the tiny network: 8 and 16 channels


def run_of(out: Path, recipe: str) -> Run:
    from robust_plugin.recipes.config.read import build

    content = json.loads((out / "config.json").read_text())
    del content["recipe"]
    return Run(out, build(RECIPES[recipe].config, content, where="config.json"))


def networks(run: Run) -> tuple[nn.Module, nn.Module]:
    """The network of model.safetensors, and the one of small.safetensors."""
    masked = run.fresh_model()
    load_weights(masked, run.folder / "model.safetensors")
    return masked.eval(), small_network(run, run.fresh_model()).eval()


@pytest.mark.parametrize("recipe", ["magnitude", "hydra", "harp"])
def test_the_small_network_is_the_masked_one(
    recipe: str,
    run_tiny: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run_tiny(recipe, tmp_path / "run", *CHANNELS)
    run = run_of(tmp_path / "run", recipe)
    masked, small = networks(run)
    x = torch.rand(32, 3, 8, 8)
    expected = masked(x)
    assert (expected - small(x)).abs().max() < 1e-5 * expected.abs().max()
    counts = json.loads((run.folder / "channels.json").read_text())
    assert counts == found["report"]["kept"]
    assert {name: size for name, (_, size) in counts.items()} == {CONV: 8, WIDE: 16}
    assert small.get_submodule(CONV).out_channels == counts[CONV][0] < 8
    assert small.get_submodule(WIDE).out_channels == counts[WIDE][0] < 16
    if recipe != "harp":
        assert [kept for kept, _ in counts.values()] == [4, 8]
    check_table(run, small, capsys.readouterr().out)


def check_table(run: Run, small: nn.Module, printed: str) -> None:
    text = (run.folder / "before_after.txt").read_text()
    assert text.strip() in printed
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in text.splitlines()[1:6]}
    assert list(rows) == [
        "parameters", "multiply-adds", "file, bytes", "ms at batch 1", "ms at batch 64",
    ]  # fmt: skip
    content = json.loads((run.folder / "before_after.json").read_text())
    dense, after = content["dense"], content["pruned"]
    a, b = (small.get_submodule(name).out_channels for name in (CONV, WIDE))
    # Convolutions on 4x4 and 2x2 positions, and a Linear layer that reads the latter.
    assert dense["multiply_adds"] == 16 * 27 * 8 + 4 * 9 * 8 * 16 + 64 * 4
    assert after["multiply_adds"] == 16 * 27 * a + 4 * 9 * a * b + 4 * b * 4
    assert after["parameters"] == sum(p.numel() for p in small.parameters())
    assert after["parameters"] == 27 * a + 2 * a + 9 * a * b + b + 16 * b + 4
    assert rows["parameters"][:2] == [f"{each['parameters']:,}" for each in (dense, after)]
    assert after["bytes"] < dense["bytes"]
    assert all(each["milliseconds"][batch] > 0 for each in (dense, after) for batch in ("1", "64"))
    report = json.loads((run.folder / "report.json").read_text())["report"]
    # The small network classifies as the masked one, clean and attacked, and both are in the table.
    assert after["report"]["clean_acc"] == report["clean_acc"]
    assert "clean, %" in text and "PGD" in text and "n=32 test points" in text
    # Each accuracy is compared, and the text says that the pruned network was trained longer.
    (recipe,) = (each for each in RECIPES.values() if each.config is type(run.config))
    stages = recipe.stages(run.config)
    epochs = sum(stage.epochs for name, stage in stages.items() if name != "pretrain")
    said = [line for line in text.splitlines() if " of 32 points, " in line]
    assert len(said) == len(report["flags"])
    for line in said:
        assert line.endswith(f"; pruned was trained {epochs} epochs longer than dense")


def test_the_same_command_again_returns_the_same(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_tiny("hydra", tmp_path / "run", *CHANNELS)
    monkeypatch.setattr(loop, "_epoch", forbidden)  # nothing is trained again
    assert run_tiny("hydra", tmp_path / "run", *CHANNELS) == first


def forbidden(*_: Any) -> float:
    raise AssertionError("an epoch was trained")


def test_killed_in_fine_tuning_it_goes_on_with_the_same_masks(
    run_tiny: Callable[..., dict[str, Any]],
    words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_tiny("harp", tmp_path / "whole", *CHANNELS)
    epoch = loop._epoch

    def killed(run: Run, name: str, *rest: Any) -> float:
        if name == "finetune" and rest[4] == 1:
            raise KeyboardInterrupt
        return epoch(run, name, *rest)

    monkeypatch.setattr(loop, "_epoch", killed)
    assert main(words("harp", tmp_path / "cut", *CHANNELS)) == 130
    assert not (tmp_path / "cut" / "small.safetensors").exists()
    before = load(tmp_path / "cut" / "finetune.safetensors").tensors
    monkeypatch.setattr(loop, "_epoch", epoch)
    resumed = run_tiny("harp", tmp_path / "cut", *CHANNELS)
    after = load(tmp_path / "cut" / "finetune.safetensors").tensors
    scores = [name for name in before if name.endswith(".scores")]
    assert len(scores) >= 2 and all(torch.equal(before[name], after[name]) for name in scores)
    for name in scores:
        states = [found[name.replace("scores", "_extra_state")] for found in (before, after)]
        assert torch.equal(*(mask_of(state, before[name].shape) for state in states))
    for name in ("small.safetensors", "model.safetensors", "report", "log"):
        assert resumed[name] == whole[name], name


def test_whole_blocks(run_tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = run_tiny("harp", tmp_path, "--structure=channels", "--budget=flops",
                     "--density=0.6", "--round-to=4")  # fmt: skip
    kept = [count for count, _ in found["report"]["kept"].values()]
    assert all(count % 4 == 0 for count in kept) and kept != [8, 16]


def test_a_run_on_weights_has_no_such_files(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run_tiny("magnitude", tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {"small.safetensors", "channels.json"}
    assert "model.safetensors" in left
    with pytest.raises(ValueError, match="holds no small.safetensors; run a recipe with"):
        before_after(run_of(tmp_path, "magnitude"))


def test_zeros_are_left_out_of_the_size_of_a_network_with_pruned_weights(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run_tiny("magnitude", tmp_path)
    found = compared(run_of(tmp_path, "magnitude"))
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: int(state[f"{name}.weight"].count_nonzero()) for name in "036"}
    others = 8 + 8 + 16 + 4  # of the BatchNorm, and biases
    assert found.pruned.parameters == sum(kept.values()) + others
    assert found.pruned.multiply_adds == 16 * kept["0"] + 4 * kept["3"] + kept["6"]
    assert found.dense.parameters == 27 * 8 + 9 * 8 * 16 + 64 * 4 + others
    assert found.dense.multiply_adds == 16 * 27 * 8 + 4 * 9 * 8 * 16 + 64 * 4
    assert found.pruned.bytes < found.dense.bytes
    text = (tmp_path / "before_after.txt").read_text()
    assert text == f"{found}\n" and "parameters not zero" in text


def test_measurements_are_used_again_if_the_settings_are_the_same(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run_tiny("magnitude", tmp_path)
    run = run_of(tmp_path, "magnitude")
    first = compared(run)
    assert compared(run, stored=True) == first  # the latency too
    assert BeforeAfter.from_plain(json.loads(json.dumps(first.plain()))) == first
    content = json.loads((tmp_path / "report.json").read_text())
    content["identity"]["seed"] = 7
    (tmp_path / "report.json").write_text(json.dumps(content))
    again = compared(run, stored=True)
    assert again != first and again.dense.report == first.dense.report


BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "erk": ("hydra", (*CHANNELS, "--rates=erk"), "rates is 'erk'.*uniform, lamp and global"),
    "pattern": ("hydra", (*CHANNELS, "--pattern=2:4"), "pattern is '2:4'.*structure weights"),
    "learned pattern": ("harp", (*CHANNELS, "--pattern=n:4"), "pattern is 'n:4'.*pattern none"),
    "budget": ("harp", ("--budget=channels",), "budget is 'channels', but structure is 'weights'"),
    "blocks of weights": ("magnitude", ("--round-to=8",), "round_to is 8, but structure is 'weig"),
    "no block": ("magnitude", (*CHANNELS, "--round-to=0"), "round_to is 0; legal: 1"),
    "blocks that fit nothing": ("hydra", (*CHANNELS, "--round-to=7"), "have 8, 16 channels"),
    "a budget below a block": ("harp", (*CHANNELS, "--density=0.2", "--round-to=8"), "one block"),
    "a budget below a channel": (
        "magnitude",
        ("--structure=channels", "--budget=flops", "--density=0.001"),
        "one channel of every group",
    ),
    "all ignored": ("hydra", (*CHANNELS, "--exclude", "0", "3"), "are not ignored"),
    "mixed channels": (
        "hydra",
        (*CHANNELS, "--model=group_norms:net"),
        "normalises over channels",
    ),
}

GROUP_NORMS = """
from torch import nn


def net(num_classes):
    body = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8 * 36, num_classes))
"""


@pytest.mark.parametrize("case", BAD)
def test_settings_that_do_not_go_together_stop_before_any_training(
    case: str,
    at_workplace: Path,
    words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, more, says = BAD[case]
    (at_workplace / "group_norms.py").write_text(GROUP_NORMS)
    monkeypatch.setattr(loop, "_epoch", forbidden)
    assert main(words(recipe, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and re.search(says, error), error
    assert not (tmp_path / "out").exists()


def test_runs_from_before_a_setting_go_on() -> None:
    now = {"recipe": "HydraConfig", "round_to": 1}
    refuse_other_settings({"recipe": "HydraConfig"}, now, Path("runs"))
    with pytest.raises(ValueError, match="round_to was 1 and is now 8"):
        refuse_other_settings({"recipe": "HydraConfig"}, {**now, "round_to": 8}, Path("runs"))
    assert RecipeConfig().round_to == 1
