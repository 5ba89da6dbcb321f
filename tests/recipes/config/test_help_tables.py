"""The texts of the help name only commands and settings that exist."""

import re

from robust_plugin.recipes.commands import COMMANDS
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.help_tables import (
    CHANNELS,
    COMPARING,
    EVALUATING,
    LIST,
    TRAINING,
    USAGE,
    common_options,
)
from robust_plugin.recipes.config.option_list import options_of
from robust_plugin.recipes.config.schema import RecipeConfig


def test_the_usage_describes_every_command_in_order() -> None:
    described = re.findall(r"^  ([a-z]+)  +[A-Za-z]", USAGE, re.MULTILINE)
    assert described == list(COMMANDS)
    assert max(map(len, (USAGE + CHANNELS + LIST).splitlines())) <= 100


def test_the_tables_name_settings() -> None:
    for groups, kind in (
        (TRAINING, RecipeConfig),
        (COMPARING, CompareConfig),
        (EVALUATING, EvaluateConfig),
    ):
        paths = {option.path for option in options_of(kind)}
        named = [path for table in groups.values() for path in table]
        assert set(named) <= paths and len(named) == len(set(named))


def test_out_is_described_for_what_it_is() -> None:
    common = common_options("evaluate", config="", out="")
    assert list(common)[:4] == ["--config PRESET", "--out FOLDER", "--dry-run", "--quiet"]
    assert ".json" in common["--out FOLDER"] and "[None]" in common["--out FOLDER"]
    assert "continued" in common_options("harp", config="", out="a")["--out FOLDER"]
