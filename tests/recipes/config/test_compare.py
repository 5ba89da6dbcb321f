"""The settings of a comparison: lists, and rows that are replaced as a whole."""

from pathlib import Path

import pytest

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import as_plain, build, read_preset


def test_lists_become_tuples_and_back() -> None:
    config = build(CompareConfig, {"densities": [0.1, 1], "seeds": [3], "lrs": []}, where="here")
    assert (config.densities, config.seeds, config.lrs) == ((0.1, 1.0), (3,), ())
    assert as_plain(config)["densities"] == [0.1, 1.0]
    assert [type(seed) for seed in config.seeds] == [int]


def test_rows_replace_all_rows_of_the_preset_that_is_extended(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: compare/digits-demo\nrows:\n  mine: {recipe: hydra, prune: {lr: 0.3}}\n"
    )
    demo = read_preset("compare/digits-demo", CompareConfig)
    config = read_preset(tmp_path / "mine.yaml", CompareConfig)
    assert len(demo.rows) > 1 and config.base == demo.base
    assert config.rows == {"mine": {"recipe": "hydra", "prune": {"lr": 0.3}}}


@pytest.mark.parametrize("seeds", ["0", 0, {0, 1}, {"a": 1}])
def test_what_is_no_list_is_refused(seeds: object) -> None:
    with pytest.raises(ValueError, match="seeds is .*; legal: a list"):
        build(CompareConfig, {"seeds": seeds}, where="here")
