"""Gradual pruning: its stages, its learning rates, how the density falls, and the last cut."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_recipes import SIZES, UNIFORM, kept, settings, stage_state, stages
from small_recipe import recorded_steps
from torch import nn

from robust_plugin.masks.select import kept_count
from robust_plugin.recipes.papers.gradual import GradualConfig, parts_of
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.training.checks import check_settings
from robust_plugin.recipes.training.run import Run

Trained = Callable[..., tuple[nn.Module, Path]]
TOTAL = sum(SIZES.values())


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def share(density: float) -> float:
    """The share of all weights that is kept if each layer keeps this density, rounded up."""
    return sum(kept_count(n, density) for n in SIZES.values()) / TOTAL


# --- stages


@pytest.mark.parametrize(
    ("shrink", "epochs", "parts"),
    [(1 / 3, 25, (8, 17)), (1 / 3, 6, (2, 4)), (0.5, 3, (2, 1)), (0.01, 9, (1, 8)), (0.8, 2, None)],
)
def test_shrink_and_finetune_divide_the_epochs_of_finetune(
    shrink: float, epochs: int, parts: tuple[int, int] | None
) -> None:
    config = settings("gradual", shrink=shrink, finetune={"epochs": epochs, "select": "best"})
    if parts is None:
        with pytest.raises(ValueError, match="shrink is 0.8 and finetune.epochs is 2, of which"):
            parts_of(config)
        return
    first, last = parts_of(config)
    assert (first.epochs, last.epochs) == parts
    assert (first.select, last.select) == ("last", "best")
    assert first.lr == last.lr == config.finetune.lr


def test_its_stages_have_as_many_epochs_as_those_of_the_other_recipes(tmp_path: Path) -> None:
    epochs = {}
    for recipe in ("hydra", "gradual", "magnitude"):
        more = {"schedule": "geometric"} if recipe == "magnitude" else {}
        train_recipe(recipe, Run(tmp_path / recipe, settings(recipe, **more)))
        lines = log(tmp_path / recipe)
        epochs[recipe] = [line["stage"] for line in lines]
    assert epochs["gradual"] == [
        *["pretrain"] * 6, *["shrink"] * 2, *["prune"] * 4, *["finetune"] * 4,
    ]  # fmt: skip
    assert {len(each) for each in epochs.values()} == {6 + 4 + 6}


# --- learning rates


def cosine(lr: float, steps: int) -> list[float]:
    """lr cos^2(pi t / 2T), the half-angle form."""
    return [lr * math.cos(math.pi * t / (2 * steps)) ** 2 for t in range(steps)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_cosine_goes_through_shrink_and_finetune(tmp_path: Path, optimizer: str) -> None:
    config = settings(
        "gradual",
        pretrain={"epochs": 1},
        prune={"epochs": 2, "lr": 0.5},
        finetune={"epochs": 6, "lr": 0.05, "optimizer": optimizer},
    )
    with recorded_steps() as seen:
        train_recipe("gradual", Run(tmp_path, config))
    rates = [each[0] for each in seen]
    assert len(rates) == 3 * (1 + 2 + 2 + 4)  # 48 points in batches of 16
    pretrain, shrink, prune, finetune = rates[:3], rates[3:9], rates[9:15], rates[15:]
    assert len(pretrain) == 3
    assert shrink + finetune == pytest.approx(cosine(0.05, 18), rel=1e-9)
    assert prune == pytest.approx(cosine(0.5, 6), rel=1e-9)


@pytest.mark.parametrize(("replays", "epochs", "parts"), [(2, 6, (1, 2)), (4, 21, (1, 3))])
def test_with_free_training_the_cosine_ends_with_the_last_step(
    tmp_path: Path, replays: int, epochs: int, parts: tuple[int, int]
) -> None:
    """Free training has fewer epochs of more steps; each stage is rounded down by itself."""
    config = settings(
        "gradual",
        objective={"name": "free", "replays": replays},
        pretrain={"epochs": replays},
        prune={"epochs": replays, "lr": 0.5},
        finetune={"epochs": epochs, "lr": 0.05},
    )
    with recorded_steps() as seen:
        train_recipe("gradual", Run(tmp_path, config))
    rates, per_epoch = [each[0] for each in seen], 3 * replays
    counts = {
        name: sum(line["stage"] == name for line in log(tmp_path)) for name in stages(tmp_path)
    }
    assert (counts["shrink"], counts["finetune"]) == parts
    shrink = rates[per_epoch : per_epoch * (1 + parts[0])]
    finetune = rates[-per_epoch * parts[1] :]
    assert shrink + finetune == pytest.approx(cosine(0.05, per_epoch * sum(parts)), rel=1e-9)


def test_the_rate_of_gradual_magnitude_falls_over_all_its_epochs(tmp_path: Path) -> None:
    config = settings("magnitude", schedule="geometric", pretrain={"epochs": 1})
    with recorded_steps() as seen:
        train_recipe("magnitude", Run(tmp_path, config))
    assert [each[0] for each in seen[3:]] == pytest.approx(cosine(0.05, 30), rel=1e-9)


# --- densities


@pytest.mark.parametrize("rates", ["uniform", "lamp"])
@pytest.mark.parametrize("schedule", ["geometric", "cubic"])
def test_the_density_is_that_of_the_schedule_after_every_epoch(
    trained: Trained, schedule: str, rates: str
) -> None:
    """With k' = 2k at the end: k'^t, or k' + (1 - k') (1 - t)^3, at the share t of the epochs."""
    model, folder = trained(
        "gradual",
        schedule=schedule,
        rates=rates,
        pretrain={"epochs": 1},
        finetune={"epochs": 12, "lr": 0.05},
    )
    lines = log(folder)
    shrink = [line["density"] for line in lines if line["stage"] == "shrink"]
    assert len(shrink) == 4
    end = 2 * 0.1
    wanted = [
        end**t if schedule == "geometric" else end + (1 - end) * (1 - t) ** 3
        for t in (0.25, 0.5, 0.75, 1)
    ]
    assert shrink == pytest.approx([share(density) for density in wanted], abs=1e-12)
    others = {line["density"] for line in lines if line["stage"] in ("prune", "finetune")}
    assert others == {share(0.1)}
    assert sum(kept(model).values()) == sum(UNIFORM.values())
    if rates == "uniform":
        assert kept(model) == UNIFORM


@pytest.mark.parametrize(("shrink", "epochs"), [(0.5, 10), (1.0, 10), (0.3, 10)])
def test_the_density_of_gradual_magnitude_falls_during_a_share_of_its_epochs(
    trained: Trained, shrink: float, epochs: int
) -> None:
    model, folder = trained("magnitude", schedule="geometric", shrink=shrink)
    found = [line["density"] for line in log(folder) if line["stage"] == "finetune"]
    assert len(found) == epochs
    for epoch, density in enumerate(found, 1):
        # 100 cuts in the share of the epochs
        cuts = math.floor(100 * min(1.0, epoch / epochs / shrink) + 1e-9)
        assert density == pytest.approx(share(0.1 ** (cuts / 100)), abs=1e-12), epoch
    assert kept(model) == UNIFORM


def test_weights_train_while_the_density_falls_and_masks_are_learned_only_in_the_last_cut(
    trained: Trained,
) -> None:
    _, folder = trained("gradual", prune={"epochs": 6, "lr": 2.0, "select": "last"})
    dense, shrunk = stage_state(folder, "pretrain.best"), stage_state(folder, "shrink")
    pruned, tuned = stage_state(folder, "prune"), stage_state(folder, "finetune")
    moved = False
    for layer in ("0", "3", "6"):
        before, after = dense[f"{layer}.weight"], shrunk[f"{layer}.weight"]
        kept_first = after != 0
        assert not torch.equal(before[kept_first], after[kept_first])
        # The weights are frozen in the prune phase, and those that were pruned never come back.
        assert torch.equal(pruned[f"{layer}.weight"], after)
        final = tuned[f"{layer}.weight"] != 0
        assert not (final & ~kept_first).any() and final.sum() < kept_first.sum()
        largest = after.abs().flatten().topk(int(final.sum())).indices.tolist()
        moved |= set(largest) != set(final.flatten().nonzero().flatten().tolist())
    assert moved  # the last cut is not that of the magnitudes


def test_the_best_epoch_is_one_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says that every epoch is worse than the one before, so the first is the best."""
    from robust_plugin.recipes.training import loop

    seen: list[float] = []

    def validated(run: Any, model: nn.Module) -> dict[str, float]:
        seen.append(0.0)
        return {"clean": 0.5, "robust": 1 / len(seen)}

    monkeypatch.setattr(loop, "validated", validated)
    config = settings(
        "magnitude", schedule="geometric", shrink=0.5, finetune={"epochs": 6, "lr": 0.05}
    )
    model = train_recipe("magnitude", Run(tmp_path, config))
    best = stage_state(tmp_path, "finetune.best")
    lines = log(tmp_path)[6:]
    within = [place for place, line in enumerate(lines) if line["density"] <= share(0.1)]
    assert within == [4, 5, 6, 7, 8, 9]
    assert all(torch.equal(best[name], model.state_dict()[name]) for name in SIZES)
    last = stage_state(tmp_path, "finetune")
    assert not torch.equal(best["3.weight"], last["3.weight"])
    assert kept(model) == UNIFORM
    # The robust accuracy that the best checkpoint holds is that of the first epoch within it.
    from robust_plugin.pruning.checkpoint import load

    records = load(tmp_path / "finetune.best.safetensors").meta["records"]
    assert len(records) == 5


# --- variants


def test_channels(trained: Trained) -> None:
    model, folder = trained(
        "gradual", structure="channels", budget="channels", density=0.5, rates="uniform"
    )
    channels = json.loads((folder / "channels.json").read_text())
    assert channels and all(0 < count < size for count, size in channels.values())
    densities = [line["density"] for line in log(folder)]
    assert densities == sorted(densities, reverse=True) and densities[-1] < densities[0] == 1.0
    # A group has the name of the layer whose outputs are removed; the next layer reads the others.
    read = model.state_dict()["3.weight"].abs().sum((0, 2, 3)) != 0
    assert channels["0"] == [int(read.sum()), 8] == [4, 8]
    positions = model.state_dict()["6.weight"].view(4, 16, 4).abs().sum((0, 2)) != 0
    assert channels["3"] == [int(positions.sum()), 16] == [8, 16]
    assert (folder / "small.safetensors").is_file()


@pytest.mark.parametrize(("pattern", "n"), [("2:4", 2), ("1:4", 1)])
def test_a_pattern(trained: Trained, pattern: str, n: int) -> None:
    """Density falls by whole weights of every four, and the last cut to n of them is learned."""
    model, folder = trained("gradual", pattern=pattern, finetune={"epochs": 12, "lr": 0.05})
    for name in ("3.weight", "6.weight"):
        rows = model.state_dict()[name].movedim(1, -1).reshape(-1, 4)
        assert ((rows != 0).sum(1) == n).all()
    assert int(model.state_dict()["0.weight"].count_nonzero()) == SIZES["0.weight"]  # left dense
    falls = [line["density"] for line in log(folder) if line["stage"] == "shrink"]
    assert falls == sorted(falls, reverse=True)
    dense = SIZES["0.weight"]
    covered = TOTAL - dense
    ends = [line["density"] for line in log(folder) if line["stage"] == "finetune"]
    assert set(ends) <= {n / 4, (dense + covered * n / 4) / TOTAL}


@pytest.mark.parametrize("pattern", ["n:4", "n:8"])
def test_a_pattern_whose_n_is_learned(trained: Trained, pattern: str) -> None:
    model, _ = trained("gradual", pattern=pattern, density=0.5, learn="both")
    m = int(pattern[-1])
    for name in ("3.weight", "6.weight"):
        counts = (model.state_dict()[name].movedim(1, -1).reshape(-1, m) != 0).sum(1)
        assert counts.eq(counts[0]).all() and counts[0] > 0


@pytest.mark.parametrize("learn", ["rates", "both"])
@pytest.mark.parametrize("control", ["held", "hinge"])
def test_learned_rates(trained: Trained, learn: str, control: str) -> None:
    prune = {"epochs": 12, "lr": 0.5, "select": "last"}
    model, folder = trained("gradual", learn=learn, control=control, rates="uniform", prune=prune)
    found = kept(model)
    assert sum(found.values()) == sum(UNIFORM.values()) and found != UNIFORM
    shrunk = stage_state(folder, "shrink")
    for name, count in found.items():
        assert 1 <= count <= int(shrunk[name].count_nonzero())
    lines = log(folder)
    assert lines[7]["stage"] == "shrink" and lines[7]["density"] == share(0.2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"last_cut": 1.0}, "last_cut is 1.0; legal: the share of the shrunk network"),
        ({"last_cut": 0.0}, "last_cut is 0.0; legal: the share of the shrunk network"),
        ({"shrink": 0.0}, "shrink is 0.0; legal: a share of the epochs, above 0"),
        ({"shrink": 1.5}, "shrink is 1.5; legal: a share of the epochs, above 0"),
        ({"pattern": "n:4"}, "pattern is 'n:4', whose n each layer learns, but learn is 'scores'"),
        ({"control": "hinge"}, "control is 'hinge', but learn is 'scores'"),
        ({"structure": "channels", "rates": "erk"}, "rates is 'erk', which follows the shapes"),
        ({"regularizers": {"distill": 1.5}}, "regularizers.distill is 1.5; legal: 0 to 1"),
        ({"regularizers": {"average": 1.0}}, "regularizers.average is 1.0; legal: 0"),
        (
            {"regularizers": {"weight_perturbation": -1}},
            "regularizers.weight_perturbation is -1.0; legal: 0 or more",
        ),
        (
            {"regularizers": {"score_perturbation": 0.1}, "accumulate": 2},
            "accumulate is 2, and a perturbation of weights or scores needs",
        ),
        (
            {"regularizers": {"weight_perturbation": 0.1}, "objective": {"name": "free"}},
            "the objective free takes its perturbation from the backward pass",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(settings("gradual", **more))


def test_too_few_epochs_are_refused_before_training(tmp_path: Path) -> None:
    config: GradualConfig = settings("gradual", finetune={"epochs": 1})
    with pytest.raises(ValueError, match="leave at least one epoch to each of the two"):
        train_recipe("gradual", Run(tmp_path, config))
    assert not list(tmp_path.iterdir())
