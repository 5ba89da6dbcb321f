"""Each recipe as its paper states it: what is trained when, and what is left in the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robust_plugin import HarpPruner
from robust_plugin.masks.select import kept_count
from robust_plugin.pruning.checkpoint import load
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.data.datasets import Data
from robust_plugin.recipes.papers import harp as harp_module
from robust_plugin.recipes.papers.registry import RECIPES, execute, train_recipe
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import read_tensors, write_tensors

SETTINGS: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "4/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 6, "lr": 0.1},
    "prune": {"epochs": 4, "lr": 0.5, "select": "last"},
    "finetune": {"epochs": 6, "lr": 0.05},
    "evaluation": {"steps": 3, "restarts": 1},
    "density": 0.1,
    "device": "cpu",
    "threads": 1,
}
SIZES = {"0.weight": 3 * 8 * 9, "3.weight": 8 * 16 * 9, "6.weight": 64 * 4}
UNIFORM = {name: kept_count(n, 0.1) for name, n in SIZES.items()}


def settings(recipe: str, **more: Any) -> Any:
    return build(RECIPES[recipe][0], {**SETTINGS, **more}, where="test")


@pytest.fixture(autouse=True)
def on_planted(
    at_workplace: Path, planted: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = planted(signal=0.15, noise=0.6)  # hard enough for gradients that last
    monkeypatch.setattr(run_module, "data_of", lambda of: data)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[nn.Module, Path]]:
    def run(recipe: str, **more: Any) -> tuple[nn.Module, Path]:
        return train_recipe(recipe, Run(tmp_path, settings(recipe, **more))), tmp_path

    return run


def kept(model: nn.Module) -> dict[str, int]:
    state = model.state_dict()
    return {name: int(state[name].count_nonzero()) for name in SIZES}


def stages(folder: Path) -> list[str]:
    lines = [json.loads(line)["stage"] for line in (folder / "log.jsonl").open()]
    return list(dict.fromkeys(lines))


def stage_state(folder: Path, name: str) -> dict[str, Tensor]:
    """The model part of a stage's last checkpoint."""
    tensors = load_file(folder / f"{name}.safetensors")
    return {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}


def dense_weight(state: dict[str, Tensor], layer: str) -> Tensor:
    (found,) = [t for k, t in state.items() if k in (f"{layer}.weight", under(layer))]
    return found


def under(layer: str) -> str:
    return f"{layer}.parametrizations.weight.original"


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-shot": ("magnitude", {}),
    "one-shot erk": ("magnitude", {"rates": "erk"}),
    "iterative": ("magnitude", {"rounds": 3}),
    "global": ("magnitude", {"rates": "global"}),
    "hydra": ("hydra", {}),
    "hydra lamp": ("hydra", {"rates": "lamp"}),
    "harp held": ("harp", {}),
    "harp hinge": ("harp", {"control": "hinge"}),
    "harp rates": ("harp", {"learn": "rates"}),
    "harp scores": ("harp", {"learn": "scores", "rates": "erk"}),
    "harp flops": ("harp", {"budget": "flops", "density": 0.3}),
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
    if recipe == "hydra" and "rates" not in more or variant == "one-shot":
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
    # The last mask is chosen by what fine-tuning made of the weights that were left.
    before = stage_state(folder, "finetune-2")
    for name, count in UNIFORM.items():
        layer = name.removesuffix(".weight")
        last = int(kept_count(SIZES[name], 0.1 ** (2 / 3)))
        weight = dense_weight(before, layer).flatten().abs()
        final = model.state_dict()[name].flatten().nonzero().flatten()
        assert len(final) == count < last
        # At most so many were larger; ties aside, exactly the survivors.
        threshold = weight[final].min()
        assert int((weight > threshold).sum()) <= last


def test_one_round_is_one_shot(tmp_path: Path) -> None:
    states = [
        train_recipe("magnitude", Run(tmp_path / name, settings("magnitude", **more))).state_dict()
        for name, more in (("a", {}), ("b", {"rounds": 1}))
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


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
        assert torch.equal(pruned[under(layer)], dense[f"{layer}.weight"])  # theta frozen
        assert not torch.equal(tuned[under(layer)], pruned[under(layer)])
        scores = f"{layer}.parametrizations.weight.0.group.scores"
        assert torch.equal(pruned[scores], tuned[scores])
        first = dense[f"{layer}.weight"] / dense[f"{layer}.weight"].abs().max()
        first = first * (6 / first[0].numel()) ** 0.5
        changed = not torch.allclose(pruned[scores], first, rtol=1e-5)
        assert changed == (more.get("learn") != "rates")
    assert torch.equal(pruned["3.bias"], dense["3.bias"])
    assert not torch.equal(pruned["1.weight"], dense["1.weight"])  # norms are trained


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
    model, _ = trained("hydra", pattern=pattern)  # the density is implied
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


@pytest.mark.parametrize("m", [4, 8])
def test_harp_by_pattern(m: int, trained: Callable[..., tuple[nn.Module, Path]]) -> None:
    model, _ = trained("harp", pattern=f"n:{m}", density=0.5)
    covered = total = 0
    for name, size in SIZES.items():
        weight = model.state_dict()[name]
        if weight.shape[1] % m == 0:  # not the three input channels
            counts = (weight.movedim(1, -1).reshape(-1, m) != 0).sum(1)
            assert counts.eq(counts[0]).all() and counts[0] > 0
            covered += int(weight.count_nonzero())
            total += size
    assert 0.4 * total < covered <= 0.5 * total


def test_excluded_layers_stay_dense(trained: Callable[..., tuple[nn.Module, Path]]) -> None:
    model, _ = trained("hydra", exclude=["6"])
    found = kept(model)
    assert found["6.weight"] == SIZES["6.weight"]
    assert found["3.weight"] == UNIFORM["3.weight"]


@pytest.mark.parametrize("control", ["held", "hinge"])
def test_harp_meets_its_budget_by_its_own_training(
    control: str,
    trained: Callable[..., tuple[nn.Module, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruners = []
    attach = harp_module.HarpPruner

    def remembered(*args: Any, **kwargs: Any) -> HarpPruner:
        pruners.append(attach(*args, **kwargs))
        return pruners[-1]

    monkeypatch.setattr(harp_module, "HarpPruner", remembered)
    # Target below the start of 10 %, so that there is a way to go.
    _, folder = trained(
        "harp", control=control, density=0.05, prune={"epochs": 20, "lr": 0.5, "select": "last"}
    )
    lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
    on_the_way = [line["density"] for line in lines if line["stage"] == "prune"]
    final = {line["density"] for line in lines if line["stage"] == "finetune"}
    target = sum(kept_count(n, 0.05) for n in SIZES.values()) / sum(SIZES.values())
    assert final == {target}
    assert on_the_way[0] > 1.2 * target  # begins above
    # No cliff at the end: within 1 %, and one entry in each of the three layers, rounded up.
    total = sum(SIZES.values())
    assert abs(on_the_way[-1] - target) * total <= 0.01 * target * total + 3, on_the_way
    assert pruners[0].phase == "finalized"


def test_harp_moves_weights_between_layers_by_its_gradients(tmp_path: Path) -> None:
    found = {}
    for learn in ("both", "rates"):
        run = Run(tmp_path / learn, settings("harp", learn=learn))
        found[learn] = kept(train_recipe("harp", run))
    assert all(each != UNIFORM for each in found.values())
    assert found["both"] != found["rates"]


def test_scores_alone_are_hydra(tmp_path: Path) -> None:
    scores = Run(tmp_path / "harp", settings("harp", learn="scores", rates="erk"))
    by_hydra = Run(tmp_path / "hydra", settings("hydra", rates="erk"))
    one, two = train_recipe("harp", scores), train_recipe("hydra", by_hydra)
    assert kept(one) == kept(two) != UNIFORM
    states = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


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
