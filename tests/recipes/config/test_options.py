"""Options of the command line: those of every command, and the settings."""

from typing import Any

import pytest

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.options import Common, read_common, read_settings
from robust_plugin.recipes.config.schema import RecipeConfig

SHORT = {"--attack": "--attacks", "--eps": "--threat.eps"}


@pytest.mark.parametrize(
    ("words", "out", "rest"),
    [
        (["--out", "a", "--out=b", "--seed=1", "--out", "c", "--out=d"], "d", ["--seed=1"]),
        (["--out=a", "--density", "0.1", "--out", "b"], "b", ["--density", "0.1"]),
        (["--outer=1", "--ou", "a"], "x", ["--outer=1", "--ou", "a"]),
        (["--out=a=b"], "a=b", []),
        (["--out="], "", []),
        (["--exclude", "fc", "stem", "--threat.eps", "-1"], "x", None),
    ],
)
def test_common_options_are_read_in_both_forms_and_the_last_wins(
    words: list[str], out: str, rest: list[str] | None
) -> None:
    given, left = read_common(words, out="x")
    assert given == Common("", out, False, False, "none")
    assert left == (words if rest is None else rest)


@pytest.mark.parametrize(
    ("word", "wanted"), [("-h", "short"), ("--help", "short"), ("--help-all", "all")]
)
def test_switches_may_stand_anywhere(word: str, wanted: str) -> None:
    words = ["--seed", "1", "--quiet", "--config", "a/b", word, "--dry-run", "--density=1"]
    given, left = read_common(words, out="x")
    assert given == Common("a/b", "x", True, True, wanted)  # type: ignore[arg-type]
    assert left == ["--seed", "1", "--density=1"]


def test_settings_replace_the_defaults_they_name_and_no_others() -> None:
    begun = RecipeConfig(model="resnet18", seed=3, threads=2)
    words = ["--seed", "4", "--prune.lr=1e-3", "--exclude", "a", "b", "--threads=None"]
    words += ["--finetune.weight_decay", "0", "--channels-last", "--prune.decay-scores"]
    words += ["--objective.kappa", "0.5", "0"]
    config = read_settings(begun, words, command="program")
    assert (config.model, config.seed, config.prune.lr, config.threads) == (
        *("resnet18", 4, 0.001),
        None,
    )
    assert config.exclude == ("a", "b") and config.pretrain == begun.pretrain
    assert config.channels_last and config.prune.decay_scores and not config.compile
    assert config.finetune.weight_decay == 0.0 and config.objective.kappa == (0.5, 0.0)
    off = read_settings(config, ["--no-channels-last"], command="program")
    assert not off.channels_last and off.prune.decay_scores


def test_short_names_stand_for_long_ones() -> None:
    words = ["--attack", "pgd", "fab", "--eps=1/255", "--radii", "1/255", "0.1"]
    config = read_settings(EvaluateConfig(steps=3), words, command="program", short=SHORT)
    assert config.attacks == ("pgd", "fab") and config.threat.eps == "1/255"
    assert config.radii == ("1/255", "0.1") and config.steps == 3
    assert read_settings(config, ["--radii"], command="program").radii == ()


WRONG: list[tuple[Any, list[str], str]] = [
    (RecipeConfig(), ["--prune.lrr", "1"], "unknown option --prune.lrr (did you mean --prune.lr?)"),
    (RecipeConfig(), ["--prune-lr=1"], "did you mean --prune.lr?"),
    (RecipeConfig(), ["--dens=0.1"], "did you mean --density?"),
    (RecipeConfig(), ["--eps", "1"], "did you mean --threat.eps?"),
    (RecipeConfig(), ["--dryrun"], "did you mean --dry-run?"),
    (
        RecipeConfig(),
        ["--epochs=3"],
        "did you mean --pretrain.epochs, --prune.epochs or --finetune.epochs?",
    ),
    (RecipeConfig(), ["--xyz"], "unknown option --xyz; program --help-all lists all."),
    (CompareConfig(), ["--density=1"], "did you mean --base.density or --densities?"),
    (CompareConfig(), ["--base.threat.epps=1"], "did you mean --base.threat.eps?"),
    (CompareConfig(), ["--rows=1"], "unknown option --rows"),
    (RecipeConfig(), ["--rates", "erkk"], "rates is 'erkk' (did you mean erk?); legal: uniform,"),
    (RecipeConfig(), ["--density", "1x"], "density is '1x'; legal: a finite number."),
    (RecipeConfig(), ["--density=nan"], "density is 'nan'; legal: a finite number."),
    (RecipeConfig(), ["--seed", "1.5"], "seed is '1.5'; legal: a whole number."),
    (RecipeConfig(), ["--objective.kappa", "1"], "objective.kappa is ['1']; legal: a list of 2."),
    (RecipeConfig(), ["--density"], "--density needs a value."),
    (RecipeConfig(), ["--compile=yes"], "--compile takes no value."),
    (RecipeConfig(), ["--compile", "yes"], "'yes' belongs to no option; program --help shows"),
    (RecipeConfig(), ["--exclude", "a", "--exclude", "b"], "--exclude is given twice; give all"),
]


@pytest.mark.parametrize(("begun", "words", "message"), WRONG)
def test_a_wrong_word_is_named_with_what_was_meant(
    begun: Any, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        read_settings(begun, words, command="program")
    assert message in str(error.value) and "\n" not in str(error.value)
