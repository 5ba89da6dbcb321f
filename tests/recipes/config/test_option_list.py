"""The list of options covers every setting, with a description and a form of its value."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.option_list import near_options, options_of
from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.papers.registry import RECIPES

KINDS = [recipe.config for recipe in RECIPES.values()] + [CompareConfig, EvaluateConfig]


def leaves(plain: Any, path: str = "") -> list[str]:
    """Paths of all values in nested mappings."""
    if not isinstance(plain, dict):
        return [path]
    return [leaf for key, value in plain.items() for leaf in leaves(value, f"{path}.{key}")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_an_option_with_a_description(kind: type[Any]) -> None:
    options = options_of(kind)
    settings = [path[1:] for path in leaves(as_plain(kind())) if path != ".rows"]
    assert sorted(option.path for option in options) == sorted(set(settings) - {"rows"})
    sections = ["." in option.path for option in options]
    assert sections == sorted(sections)  # those without a section first
    for option in options:
        assert len(option.about.split()) > 4 and "  " not in option.about, option
        assert bool(option.section) == ("." in option.path), option


@dataclass(frozen=True)
class Inner:
    """Part.

    Attributes:
        on: switch that does
            something: or not.
    """

    on: bool = False


@dataclass(frozen=True)
class Base:
    """Settings.

    Attributes:
        inner: the inner part.
        names_of: names.
        kind: one of
            two.
    """

    inner: Inner = dataclasses.field(default_factory=Inner)
    names_of: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class More(Base):
    """More settings.

    Attributes:
        file: a file.
        table: no option.
    """

    file: Path | None = None
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)


def test_forms_and_descriptions_come_from_types_and_docstrings() -> None:
    found = {o.name: (o.value, o.about, o.optional, o.section) for o in options_of(More)}
    assert found == {
        "--names-of": ("TEXT [TEXT ...]", "names.", False, ""),
        "--kind": ("{a,b}", "one of two.", False, ""),
        "--file": ("PATH", "a file.", True, ""),
        "--inner.on": ("", "switch that does something: or not.", False, "the inner part."),
    }
    assert typing.get_args(options_of(More)[1].kind) == ("a", "b")


def test_the_nearest_option_comes_first() -> None:
    options = ["--seed", "--seeds", "--threat.eps", "--threads", "--evaluation.steps"]
    assert near_options("--sed", options) == ["--seed", "--seeds"]
    assert near_options("--threat-eps", options)[0] == "--threat.eps"
    assert near_options("--step", options) == ["--evaluation.steps"]
    assert near_options("--unlike", options) == []
