"""The two help texts: what they list, and that they fit."""

from typing import Any

import pytest

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.help import full_help, short_help
from robust_plugin.recipes.config.help_tables import (
    COMPARING,
    EVALUATING,
    TRAINING,
    Groups,
    common_options,
)
from robust_plugin.recipes.config.option_list import options_of
from robust_plugin.recipes.config.schema import EvaluationConfig, RecipeConfig
from robust_plugin.recipes.papers.harp import HarpConfig

COMMON = common_options("harp", config="harp/digits", out="runs/harp")
CASES: list[tuple[Any, Groups]] = [
    (HarpConfig(), TRAINING),
    (CompareConfig(), COMPARING),
    (EvaluateConfig(), EVALUATING),
]


@pytest.mark.parametrize(("begun", "groups"), CASES)
@pytest.mark.parametrize("columns", [60, 100, 200])
def test_the_short_help_fits_on_a_screen(
    begun: Any, groups: Groups, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = short_help(begun, groups, COMMON, usage="program [OPTIONS]", about="About it.")
    lines = text.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)
    assert columns < 100 or len(lines) <= 45
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options[:4] == ["--config", "--out", "--dry-run", "--quiet"]
    assert 12 <= len(options) - 5 <= 18
    names = {option.name for option in options_of(type(begun))}
    assert set(options[5:]) <= names
    # Nothing of the tables is left out because a setting has another name.
    assert len(options) - 5 == sum(map(len, groups.values()))


def test_the_defaults_are_those_of_the_preset() -> None:
    begun = RecipeConfig(seed=1234, density=0.05, evaluation=EvaluationConfig(autoattack=77))
    for text in (
        short_help(begun, TRAINING, COMMON, usage="program", about=""),
        full_help(begun, COMMON, usage="program", about=""),
    ):
        flat = " ".join(text.split())
        assert "[1234]" in flat and "[0.05]" in flat and "[77]" in flat
        assert "[harp/digits]" in flat and "[runs/harp]" in flat


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("begun", [case[0] for case in CASES])
def test_the_full_help_has_every_option_once(
    begun: Any, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = full_help(begun, COMMON, usage="program", about="", short={"--eps": "--threat.eps"})
    # Choices such as {uniform,erk} are one word, which is not broken.
    assert all(len(line) <= columns or len(line.split()) == 1 for line in text.splitlines())
    heads = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    options = [option.name for option in options_of(type(begun))]
    assert heads == [*(name.split()[0].rstrip(",") for name in COMMON), *options]
    flat = " ".join(text.split())
    assert all(option.about in flat for option in options_of(type(begun)))
    assert ("--threat.eps, --eps TEXT" in flat) == ("--threat.eps" in options)
