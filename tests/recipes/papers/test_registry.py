"""All recipes by name: what each stage trains, and the final network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_recipes import SIZES, UNIFORM, kept, settings, stage_state, stages
from torch import nn

from robust_plugin.masks.select import kept_count
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.papers.registry import RECIPES, execute, finished_run, train_recipe
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import read_tensors, write_tensors

Words = Callable[..., list[str]]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-shot": ("magnitude", {}),
    "one-shot erk": ("magnitude", {"rates": "erk"}),
    "iterative": ("magnitude", {"rounds": 3}),
    "global": ("magnitude", {"rates": "global"}),
    "gradual magnitude": ("magnitude", {"schedule": "geometric"}),
    "hydra": ("hydra", {}),
    "hydra lamp": ("hydra", {"rates": "lamp"}),
    "harp held": ("harp", {}),
    "harp hinge": ("harp", {"control": "hinge"}),
    "harp rates": ("harp", {"learn": "rates"}),
    "harp scores": ("harp", {"learn": "scores", "rates": "erk"}),
    "harp flops": ("harp", {"budget": "flops", "density": 0.3}),
    "gradual": ("gradual", {}),
    "gradual erk": ("gradual", {"rates": "erk"}),
    "gradual both": ("gradual", {"learn": "both"}),
    "gradual flops": ("gradual", {"budget": "flops", "density": 0.3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_result_is_plain_and_holds_the_budget(
    variant: str, trained: Callable[..., tuple[nn.Module, Path]]
) -> None:
    recipe, more = VARIANTS[variant]
    model, folder = trained(recipe, **more)
    assert [type(module) for module in model.children()] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Conv2d,
        nn.ReLU,
        nn.Flatten,
        nn.Linear,
    ]
    found = kept(model)
    if more.get("budget") == "flops":  # positions of the two convolutions on 8x8 and 4x4 inputs
        cost = {"0.weight": 16, "3.weight": 4, "6.weight": 1}
        spent = sum(cost[name] * n for name, n in found.items())
        target = sum(cost[name] * kept_count(SIZES[name], 0.3) for name in SIZES)
        assert 0.99 * target <= spent <= target
    else:
        assert sum(found.values()) == sum(UNIFORM.values())
    if recipe == "hydra" and "rates" not in more or variant in ("one-shot", "gradual magnitude"):
        assert found == UNIFORM
    if more.get("rates"):
        assert found != UNIFORM
    assert all(count >= 1 for count in found.values())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns(variant: str, tmp_path: Path) -> None:
    recipe, more = VARIANTS[variant]
    more = {**more, "finetune": {"epochs": 15, "lr": 0.1}, "prune": {"epochs": 8, "lr": 0.5}}
    report = execute(recipe, settings(recipe, **{**more, "density": 0.3}), tmp_path)
    attacked = report.accuracy("PGD-3")
    assert report.accuracy() >= 0.9 and attacked >= 0.8  # chance is 0.25


@pytest.mark.parametrize(
    ("recipe", "more"), [("hydra", {}), ("harp", {}), ("harp", {"learn": "rates"})]
)
def test_the_prune_phase_trains_the_masks_and_not_the_weights(
    recipe: str, more: dict[str, Any], trained: Callable[..., tuple[nn.Module, Path]]
) -> None:
    _, folder = trained(recipe, **more)
    assert stages(folder) == ["pretrain", "prune", "finetune"]
    dense = stage_state(folder, "pretrain.best")
    pruned, tuned = stage_state(folder, "prune"), stage_state(folder, "finetune")
    for layer in ("0", "3", "6"):
        assert torch.equal(pruned[f"{layer}.weight"], dense[f"{layer}.weight"])  # theta frozen
        assert not torch.equal(tuned[f"{layer}.weight"], pruned[f"{layer}.weight"])
        scores = f"{layer}.pruner_masks.0.group.scores"
        assert torch.equal(pruned[scores], tuned[scores])
        first = dense[f"{layer}.weight"] / dense[f"{layer}.weight"].abs().max()
        first = first * (6 / first[0].numel()) ** 0.5
        changed = not torch.allclose(pruned[scores], first, rtol=1e-5)
        assert changed == (more.get("learn") != "rates")
    assert torch.equal(pruned["3.bias"], dense["3.bias"])
    assert not torch.equal(pruned["1.weight"], dense["1.weight"])  # norms are trained


@pytest.mark.parametrize("recipe", ["hydra", "harp"])
def test_without_fine_tuning_the_masked_weights_are_those_of_the_dense_network(
    recipe: str, trained: Callable[..., tuple[nn.Module, Path]]
) -> None:
    model, folder = trained(recipe, finetune={"epochs": 0}, pretraining="benign")
    assert stages(folder) == ["pretrain", "prune"]
    dense = load(folder / "pretrain.best.safetensors").tensors
    for name, weight in model.state_dict().items():
        if name in SIZES:
            mask = weight != 0
            assert torch.equal(weight[mask], dense[f"model/{name}"][mask])
    assert sum(kept(model).values()) == sum(UNIFORM.values())


def test_a_benign_dense_network_never_meets_an_adversary(tmp_path: Path) -> None:
    runs = {
        "benign": settings("hydra", objective={"name": "benign"}),
        "hidden": settings("hydra", pretraining="benign"),
        "robust": settings("hydra"),
    }
    dense = {}
    for name, config in runs.items():
        train_recipe("hydra", Run(tmp_path / name, config))
        dense[name] = stage_state(tmp_path / name, "pretrain")
    weight = "0.weight"
    assert torch.equal(dense["benign"][weight], dense["hidden"][weight])
    assert not torch.equal(dense["robust"][weight], dense["hidden"][weight])
    with pytest.raises(ValueError, match="pretraining was 'benign' and is now 'robust'"):
        train_recipe("hydra", Run(tmp_path / "hidden", runs["robust"]))


def test_a_run_that_is_older_than_the_setting_goes_on(tmp_path: Path) -> None:
    config = settings("hydra")
    train_recipe("hydra", Run(tmp_path, config))
    for path in tmp_path.glob("*.safetensors"):
        tensors, content = read_tensors(path)
        identity = content["meta"]["identity"]
        del identity["pretraining"], identity["data"]["extra"], identity["data"]["extra_share"]
        write_tensors(path, tensors, content)
    before = (tmp_path / "log.jsonl").read_text()
    train_recipe("hydra", Run(tmp_path, config))
    assert (tmp_path / "log.jsonl").read_text() == before


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("recipe", "more"), [("magnitude", {"rounds": 3}), ("harp", {}), ("gradual", {})]
)
def test_the_stages_are_those_that_are_trained(
    recipe: str, more: dict[str, Any], tmp_path: Path, words: Words
) -> None:
    epochs = {"epochs": 2, "lr": 0.05}
    settings = {
        **{"model": "tiny_networks:net", "data": {"name": "folder", "folder": "images"}},
        **{"objective": {"steps": 1}, "pretrain": epochs, "prune": epochs, "finetune": epochs},
        **{"device": "cpu", "threads": 1, **more},
    }
    config = build(RECIPES[recipe].config, settings, where="test")
    train_recipe(recipe, Run(tmp_path, config))
    trained = [path.name.partition(".")[0] for path in tmp_path.glob("*.safetensors")]
    assert set(trained) == set(RECIPES[recipe].stages(config))


def test_a_checkpoint_replaces_pretraining_and_no_epochs_leave_out_fine_tuning() -> None:
    def names(recipe: str, **more: Any) -> list[str]:
        return list(RECIPES[recipe].stages(settings(recipe, **more)))

    given = {"checkpoint": "dense.safetensors"}
    assert names("dense") == ["pretrain"] and names("dense", **given) == []
    assert names("hydra") == names("harp") == ["pretrain", "prune", "finetune"]
    assert names("hydra", **given, finetune={"epochs": 0}) == ["prune"]
    assert names("gradual", **given) == ["shrink", "prune", "finetune"]
    assert names("magnitude", **given, rounds=2) == ["finetune-1", "finetune"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        finished_run(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "OtherConfig"}')
    with pytest.raises(ValueError, match="names no recipe; legal: GradualConfig, Magnitude"):
        finished_run(tmp_path)
