"""Functions of the user that are called by their name; tests of models and data name mistakes."""

import sys
from pathlib import Path

import pytest

from robust_plugin.recipes.runtime.own_code import call


def test_a_function_gets_the_arguments_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "called_by_name.py").write_text(
        "def none(): return ()\n"
        "def one(b): return b\n"
        "def all(**given): return sorted(given)\n"
        "class Inner:\n    @staticmethod\n    def two(a, b=0): return a, b\n"
        "def missing(a, c): return a\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    offered = {"a": 1, "b": 2}
    for name, expected in (("none", ()), ("one", 2), ("all", ["a", "b"]), ("Inner.two", (1, 2))):
        assert call(f"called_by_name:{name}", what="model", offered=offered) == expected
    with pytest.raises(TypeError, match="model .* is called with a and b or with nothing"):
        call("called_by_name:missing", what="model", offered=offered)
    with pytest.raises(ValueError, match="data 'absent_module:f': cannot import 'absent_module'"):
        call("absent_module:f", what="data", offered={})
