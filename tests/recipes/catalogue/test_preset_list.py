"""The list of presets, and which of them have published figures."""

from robust_plugin.recipes.catalogue.preset_list import listing, published_presets
from robust_plugin.recipes.catalogue.published import (
    figures,
)
from robust_plugin.recipes.config.read import read_preset
from robust_plugin.recipes.papers.registry import RECIPES


def test_every_figure_of_our_methods_has_a_preset_that_it_is_printed_for() -> None:
    printed = {
        (command, config.data.name, config.model, density)
        for command in ("magnitude", "hydra", "harp")
        for name, densities in published_presets(command)
        for config in [read_preset(name, RECIPES[command].config)]
        for density in densities
    }
    for figure in figures():
        if figure.method in RECIPES and figure.model is not None:
            assert (figure.method, figure.data, figure.model, figure.density) in printed


def test_the_list_shows_the_densities_of_each_preset_in_percent() -> None:
    lines = [line.split() for line in listing().splitlines() if line.startswith("  ")]
    shown = {words[0]: words[1:4] for words in lines}
    assert shown["hydra/cifar10-wrn28-4"] == ["10,", "5,", "1"]
    assert shown["harp/cifar10-vgg16-channels"] == ["50,", "25,", "10"]


def test_gradual_has_no_figures_and_the_list_says_what_stands_beside_its_runs() -> None:
    assert dict(published_presets("gradual")) == {}
    (section,) = [part for part in listing().split("\n\n") if part.startswith("gradual\n")]
    said = "published for it: nothing; a run is set beside the figures of magnitude, hydra and harp"
    assert [line.strip() for line in section.splitlines()].count(said) == 1


def test_magnitude_takes_the_presets_of_the_others_and_they_take_only_their_own() -> None:
    names = {command: dict(published_presets(command)) for command in ("magnitude", "hydra")}
    assert {name.partition("/")[0] for name in names["magnitude"]} >= {"magnitude", "hydra"}
    assert {name.partition("/")[0] for name in names["hydra"]} == {"hydra"}
