"""Options of the command line: those of every command, short names, and the settings."""

import pytest

from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.options import (
    EvaluateOptions,
    TrainOptions,
    full_names,
    read_common,
    read_settings,
)
from robust_plugin.recipes.config.schema import RecipeConfig


@pytest.mark.parametrize(
    ("words", "out", "rest"),
    [
        (["--out", "a", "--out=b", "--seed=1", "--out", "c", "--out=d"], "d", ["--seed=1"]),
        (["--out=a", "--density", "0.1", "--out", "b"], "b", ["--density", "0.1"]),
        (["--outer=1", "--ou", "a"], "x", ["--outer=1", "--ou", "a"]),
        (["--out=a=b"], "a=b", []),
        (["--out="], "", []),
        (["--exclude", "fc", "stem", "--threat.eps", "-1"], "x", None),
        (["--help"], "x", None),
    ],
)
def test_common_options_are_read_in_both_forms_and_the_last_wins(
    words: list[str], out: str, rest: list[str] | None
) -> None:
    given, left = read_common(words, out="x")
    assert (given.out, given.config, given.dry_run) == (out, "", False)
    assert left == (words if rest is None else rest)


def test_short_names_are_replaced_and_their_values_kept() -> None:
    words = ["--eps=1=2", "--norm", "--attack", "pgd", "--epsilon", "eps"]
    expected = ["--threat.eps=1=2", "--threat.norm", "--attacks", "pgd", "--epsilon", "eps"]
    assert full_names(words) == expected


def test_settings_replace_the_defaults_they_name_and_no_others() -> None:
    begun = RecipeConfig(model="resnet18", seed=3)
    options = TrainOptions("a/preset", "runs/x", False, begun)
    words = ["--seed", "4", "--prune.lr=1e-3", "--exclude", "a", "b"]
    config = read_settings(RecipeConfig, options, words, "program")
    assert (config.model, config.seed, config.prune.lr) == ("resnet18", 4, 0.001)
    assert config.exclude == ("a", "b") and config.finetune == begun.finetune
    evaluated = EvaluateOptions(None, None, EvaluateConfig(steps=3))
    config_ = read_settings(EvaluateConfig, evaluated, ["--radii", "1/255", "0.1"], "program")
    assert config_.radii == ("1/255", "0.1") and config_.steps == 3


def test_the_help_shows_the_defaults_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions("a/preset", "runs/x", False, RecipeConfig(seed=1234))
    with pytest.raises(SystemExit) as stop:
        read_settings(RecipeConfig, options, ["--help"], "program", "What the program does.")
    frame = str.maketrans("│|", "  ")
    printed = " ".join(capsys.readouterr().out.translate(frame).split())  # lines joined again
    assert stop.value.code == 0 and "What the program does." in printed
    assert all(f"(default: {value})" in printed for value in ("a/preset", "runs/x", "1234"))


def test_a_number_that_is_not_finite_is_refused() -> None:
    options = TrainOptions("a/preset", "runs/x", False, RecipeConfig())
    with pytest.raises(ValueError, match="options: density is nan; legal: a finite number"):
        read_settings(RecipeConfig, options, ["--density=nan"], "program")
