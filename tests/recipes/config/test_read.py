"""Settings are read strictly: each wrong one is named with what is legal."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import build, read_preset
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.papers.harp import HarpConfig
from robust_plugin.recipes.papers.hydra import HydraConfig


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"densty": 0.1},
            r"here: unknown setting densty \(did you mean density\?\); legal: model, .*density",
        ),
        (
            {"data": {"nam": "digits"}},
            r"here: unknown setting data.nam \(did you mean data.name\?\); legal: name, folder",
        ),
        ({"objective": {"name": "pgd"}}, r"here: objective.name is 'pgd'; legal: benign, "),
        ({"rates": "ekr"}, r"here: rates is 'ekr' \(did you mean erk\?\); legal: uniform, erk"),
        ({"density": "much"}, r"here: density is 'much'; legal: a finite number"),
        ({"density": None}, r"here: density is None; legal: a finite number"),
        ({"seed": 1.5}, r"here: seed is 1.5; legal: a whole number"),
        ({"seed": [1]}, r"here: seed is \[1\]; legal: a whole number"),
        ({"threads": "one"}, r"here: threads is 'one'; legal: a whole number"),
        (
            {"prune": {"decay_scores": "no"}},
            r"here: prune.decay_scores is 'no'; legal: true or false",
        ),
        ({"prune": 3}, r"here: prune is 3; legal: a mapping of settings"),
        ({"exclude": "fc"}, r"here: exclude is 'fc'; legal: a list"),
        ({"exclude": ["a", ["b"]]}, r"here: exclude.1 is \['b'\]; legal: text"),
        ({"model": {"a": 1}}, r"here: model is \{'a': 1\}; legal: text"),
        ({"model": ["a"]}, r"here: model is \['a'\]; legal: text"),
        ({"model": True}, r"here: model is True; legal: text"),
        ({"device": None}, r"here: device is None; legal: text"),
        ({"threat": {"eps": ["8/255"]}}, r"here: threat.eps is \['8/255'\]; legal: text"),
        ({"threat": {"eps": True}}, r"here: threat.eps is True; legal: text"),
        ({"density": True}, r"here: density is True; legal: a finite number"),
        ({"density": float("nan")}, r"here: density is nan; legal: a finite number"),
        ({"density": "nan"}, r"here: density is 'nan'; legal: a finite number"),
        ({"prune": {"lr": float("inf")}}, r"here: prune.lr is inf; legal: a finite number"),
        ({"seed": True}, r"here: seed is True; legal: a whole number"),
        ({"seed": "2.5"}, r"here: seed is '2.5'; legal: a whole number"),
        ({"seed": float("inf")}, r"here: seed is inf; legal: a whole number"),
        ({"threads": False}, r"here: threads is False; legal: a whole number"),
        ({"data": {"folder": True}}, r"here: data.folder is True; legal: a path"),
        ({"data": {"folder": ""}}, r"here: data.folder is ''; legal: a path"),
        ({"objective": {"kappa": [1, 0.5, 0]}}, r"kappa is \[1, 0.5, 0\]; legal: a list of 2"),
        ({"objective": {"kappa": [1]}}, r"here: objective.kappa is \[1\]; legal: a list of 2"),
        (
            {"objective": {"kappa": [1, True]}},
            r"here: objective.kappa.1 is True; legal: a finite number",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_legal(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(RecipeConfig, content, where="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": ["LWM"]}, r"rows is \['LWM'\]; legal: a mapping"),
        ({"rows": {"LWM": "magnitude"}}, r"rows.LWM is 'magnitude'; legal: a mapping"),
        ({"densities": 0.1}, r"densities is 0.1; legal: a list"),
        ({"lrs": ["fast"]}, r"lrs.0 is 'fast'; legal: a finite number"),
        ({"base": {"density": {}}}, r"base.density is \{\}; legal: a finite number"),
        ({"seeds": [0, True]}, r"seeds.1 is True; legal: a whole number"),
        ({"rows": {True: {"recipe": "hydra"}}}, r"rows has the key True; legal: text"),
    ],
)
def test_a_wrong_setting_of_a_comparison_is_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(CompareConfig, content, where="here")


def test_values_take_the_type_of_their_setting() -> None:
    content = {"data": {"folder": "images", "workers": 0}, "density": 1, "threads": None}
    config = build(RecipeConfig, content, where="here")
    assert config.data.folder == Path("images") and config.threads is None
    assert isinstance(config.density, float)
    assert build(RecipeConfig, {"exclude": ["a", "b"]}, where="here").exclude == ("a", "b")


def test_numbers_may_be_written_as_text_and_text_as_numbers(tmp_path: Path) -> None:
    text = "density: 1e-3\nseed: 1e2\nprune: {lr: '0.5'}\nthreat: {eps: 0.1}\nexclude: [0]\n"
    assert isinstance(yaml.safe_load(text)["density"], str)  # what YAML makes of 1e-3
    (tmp_path / "mine.yaml").write_text(text)
    config = read_preset(tmp_path / "mine.yaml", HydraConfig)
    assert (config.density, config.seed, config.prune.lr) == (0.001, 100, 0.5)
    assert config.threat.build().eps == 0.1 and config.exclude == ("0",)
    large = 2**62 + 1  # which no float holds
    assert build(RecipeConfig, {"seed": large}, where="here").seed == large


def test_what_a_preset_leaves_out_is_the_dataclass_default(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("density: 0.2\nprune: {lr: 0.3}\n")
    config = read_preset(tmp_path / "mine.yaml", HarpConfig)
    assert config == dataclasses.replace(
        HarpConfig(), density=0.2, prune=dataclasses.replace(HarpConfig().prune, lr=0.3)
    )


def test_an_empty_preset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"empty.yaml is empty; it would change no setting"):
        read_preset(tmp_path / "empty.yaml", HydraConfig)


def test_a_preset_that_is_not_there_points_to_the_list() -> None:
    meant = "did you mean hydra/images or hydra/digits"
    with pytest.raises(ValueError, match=f"file hydra/mnist .{meant}.*; robust"):
        read_preset("hydra/mnist", HydraConfig)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is no YAML"), ("- 1\n", "no mapping")])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml.*{message}"):
        read_preset(tmp_path / "bad.yaml", HydraConfig)


def test_all_wrong_settings_are_named_at_once_by_their_paths() -> None:
    content = {
        "threat": {"eps": ["8/255"], "nrm": "L2"},
        "objective": {"kappa": [1, 0.5, 0]},
        "prune": {"lr": "fast", "epochs": 3},
        "rates": "ekr",
    }
    with pytest.raises(ValueError) as found:
        build(RecipeConfig, content, where="mine.yaml")
    first, *others = str(found.value).splitlines()
    assert first == "mine.yaml: 5 settings are wrong:"
    assert sorted(others) == [
        "  objective.kappa is [1, 0.5, 0]; legal: a list of 2.",
        "  prune.lr is 'fast'; legal: a finite number.",
        "  rates is 'ekr' (did you mean erk?); legal: uniform, erk, lamp, global.",
        "  threat.eps is ['8/255']; legal: text.",
        "  unknown setting threat.nrm (did you mean threat.norm?); legal: norm, eps.",
    ]


def test_what_is_wrong_is_named_in_plain_words() -> None:
    for content in ({"density": "much"}, [1], {1: 2}, {"rows": {1.5: []}}):
        with pytest.raises(ValueError) as found:
            build(CompareConfig, content, where="here")  # type: ignore[arg-type]
        said = str(found.value)
        assert type(found.value) is ValueError and said.startswith("here: ")
        assert "pydantic" not in said and "Input" not in said and "legal: " in said


def test_a_default_keeps_what_is_not_given() -> None:
    default = build(RecipeConfig, {"density": 0.2, "prune": {"lr": 0.3}}, where="here")
    config = build(RecipeConfig, {"prune": {"epochs": 7}}, where="here", default=default)
    assert config.prune == dataclasses.replace(default.prune, epochs=7)
    assert config == dataclasses.replace(default, prune=config.prune)
    assert default.prune.epochs == 20


def test_a_large_whole_number_is_not_rounded_and_too_large_a_number_is_refused() -> None:
    assert build(RecipeConfig, {"seed": 10**30 + 1}, where="here").seed == 10**30 + 1
    with pytest.raises(ValueError, match="density is 1000.*; legal: a finite number"):
        build(RecipeConfig, {"density": 10**400}, where="here")
