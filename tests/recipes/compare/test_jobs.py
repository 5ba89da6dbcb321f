"""The trainings of a comparison, and settings that are refused before anything is trained."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from comparisons import BASE, ROWS, comparison

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.compare.jobs import jobs_of, settings_of, tuned_seeds
from robust_plugin.recipes.papers.harp import HarpConfig
from robust_plugin.recipes.papers.magnitude import MagnitudeConfig


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rows": {"X": {"recipe": "lwm"}}}, "row 'X' has recipe 'lwm'; legal: gradual, magn"),
        ({"rows": {"X": {"rates": "erk"}}}, "row 'X' has recipe None; legal: gradual, magn"),
        ({"rows": {"X": {"recipe": "dense"}}}, "row 'X' has recipe 'dense'; legal: gradual, "),
        (
            {"rows": {"X": {"recipe": "hydra", "control": "held"}}},
            "row 'X': unknown setting control; legal: ",
        ),
        (
            {"rows": {"X": {"recipe": "hydra", "prune": {"rate": 1}}}},
            "row 'X': unknown setting prune.rate; legal: epochs, lr",
        ),
        ({"densities": [0.1, 2]}, "density is 2.0; legal: 0 < density <= 1"),
        ({"lrs": []}, "lrs"),
        ({"seeds": []}, "seeds"),
        ({"densities": []}, "densities"),
        ({"rows": {}}, "rows"),
        ({"tuning_seeds": 2}, "tuning_seeds is 2; legal: 1 to 1, the number of seeds, or 0 for"),
        ({"tuning_seeds": -1}, "tuning_seeds is -1; legal: 1 to 1"),
        ({"jobs": 0}, "jobs is 0; legal: at least 1"),
        ({"rows": {"A B": {"recipe": "hydra"}, "A-B": {"recipe": "harp"}}}, "A-B"),
        ({"rows": {"dense": {"recipe": "hydra"}}}, "dense"),
        *(
            (
                {"rows": {"X": {"recipe": "hydra", **settings}}},
                f"row 'X' sets {name}, and a comparison takes {axis} in its place; leave it out, "
                f"and give --{axis}.",
            )
            for name, axis, settings in (
                ("density", "densities", {"density": 0.3}),  # even with the same value
                ("seed", "seeds", {"seed": 0}),
                ("finetune.lr", "lrs", {"finetune": {"epochs": 3, "lr": 0.1}}),
            )
        ),
        *(
            ({"rows": {"X": {"recipe": "hydra", **settings}}}, f"row 'X' sets {name}, but all rows")
            for name, settings in (
                ("checkpoint", {"checkpoint": "dense.pt"}),
                ("pretrain", {"pretrain": {"epochs": 9}}),
                ("pretraining", {"pretraining": "benign"}),
                ("threat", {"threat": {"eps": "1/255"}}),
                ("evaluation", {"evaluation": {"restarts": 9}}),
                ("data.folder", {"data": {"folder": "others"}}),
            )
        ),
        (
            {"rows": {"X": {"recipe": "hydra", "pattern": "2:4"}}},
            "row 'X' has the pattern 2:4, which keeps 0.5, and would stand in the table as 0.3; "
            "give --densities 0.5",
        ),
    ],
)
def test_a_wrong_row_or_list_is_named_before_anything_is_trained(
    more: dict[str, Any],
    message: str,
    tmp_path: Path,
    at_workplace: Path,
    epochs_trained: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"name": "folder", "folder": "images", "batch_size": 16}
    content = {"base": {**BASE, "data": data}, "rows": ROWS, "densities": [0.3], **more}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    assert main(["compare", f"--config={tmp_path / 'mine.yaml'}", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not epochs_trained and not out.exists()


@pytest.mark.parametrize(
    ("name", "value", "axis"),
    [("density", 0.5, "densities"), ("seed", 3, "seeds"), ("finetune.lr", 0.07, "lrs")],
)
@pytest.mark.parametrize("how", ["option", "preset", "extended preset"])
def test_what_a_comparison_replaces_in_its_base_is_refused(
    name: str,
    value: float,
    axis: str,
    how: str,
    tmp_path: Path,
    at_workplace: Path,
    epochs_trained: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"name": "folder", "folder": "images", "batch_size": 16}
    base: dict[str, Any] = {**BASE, "data": data}
    section, _, key = name.partition(".")
    if how != "option":
        base = {**base, section: {**base[section], key: value} if key else value}
    content = {"base": base, "rows": ROWS, "densities": [0.3], "lrs": [0.05]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "further.yaml").write_text("extends: mine.yaml\njobs: 1\n")
    file = tmp_path / ("further.yaml" if how == "extended preset" else "mine.yaml")
    options = [f"--base.{name}={value}"] * (how == "option")
    out = tmp_path / "out"
    assert main(["compare", f"--config={file}", f"--out={out}", *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error == (
        f"error: base.{name} is {value}, and a comparison takes {axis} in its place; leave it out, "
        f"and give --{axis}."
    )
    assert not epochs_trained and not out.exists()


def test_there_is_one_training_per_row_density_seed_and_rate() -> None:
    config = comparison(densities=[0.3, 0.1], seeds=[4, 7], lrs=[0.05, 0.01])
    dense, jobs = jobs_of(config, Path("out"))
    assert set(jobs) == set(product(ROWS, (0.3, 0.1), (4, 7), (0.05, 0.01)))
    folders = [job.folder for job in [*dense.values(), *jobs.values()]]
    assert len(set(folders)) == len(folders) == 2 + 4 * 2 * 2 * 2
    assert dense[7].folder == Path("out/seed7/dense") and dense[7].config.seed == 7
    job = jobs["LWM ERK", 0.1, 7, 0.01]
    assert job.folder == Path("out/seed7/LWM-ERK/0.1/lr0.01")
    assert (job.config.density, job.config.seed, job.lr) == (0.1, 7, 0.01)
    assert job.config.checkpoint == Path("out/seed7/dense/pretrained.safetensors")


def test_a_row_changes_its_own_settings_and_takes_the_others_from_the_base() -> None:
    _, jobs = jobs_of(comparison(), Path("out"))
    harp, magnitude = (jobs[row, 0.3, 0, 0.05] for row in ("HARP", "LWM ERK"))
    assert isinstance(harp.config, HarpConfig) and isinstance(magnitude.config, MagnitudeConfig)
    assert (harp.recipe, magnitude.recipe) == ("harp", "magnitude")
    assert magnitude.config.rates == "erk"
    prune = BASE["prune"]
    assert (harp.config.prune.lr, harp.config.prune.epochs) == (0.3, prune["epochs"])
    assert harp.config.prune.select == prune["select"]  # a row may set a part of a section
    assert magnitude.config.prune.lr == prune["lr"]
    for job in (harp, magnitude):
        assert job.config.finetune.epochs == BASE["finetune"]["epochs"] and job.lr == 0.05
        assert job.config.threat.eps == "2/255" and job.config.data.batch_size == 16


@pytest.mark.parametrize(("number", "chosen"), [(0, (4, 7, 1)), (1, (4,)), (3, (4, 7, 1))])
def test_the_first_seeds_choose_the_learning_rate(number: int, chosen: tuple[int, ...]) -> None:
    assert tuned_seeds(comparison(seeds=[4, 7, 1], tuning_seeds=number)) == chosen


def test_a_prune_phase_comes_first_where_no_weights_train_before_it() -> None:
    rows = {name: {"recipe": name} for name in ("magnitude", "hydra", "harp", "gradual")}
    _, jobs = jobs_of(comparison(rows=rows), Path("out"))
    first = {row: jobs[row, 0.3, 0, 0.05].prunes_first for row in rows}
    assert first == {"magnitude": False, "hydra": True, "harp": True, "gradual": False}


def test_the_shown_settings_leave_out_what_each_training_sets_anew() -> None:
    settings = settings_of(comparison(seeds=[1, 2]))
    assert settings["seeds"] == [1, 2] and settings["lrs"] == [0.05]
    assert not {"density", "seed"} & set(settings["base"])
    assert "lr" not in settings["base"]["finetune"] and settings["base"]["prune"]["lr"] == 0.5
