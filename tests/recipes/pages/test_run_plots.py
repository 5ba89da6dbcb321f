"""The plots of the page of a run: what is drawn, in which colour, and what the axes say."""

import re
from dataclasses import replace

from sample_pages import LONG
from sample_run import epochs, run_facts

from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.run_plots import kept_plot, size_plot, training_plot


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_training_curves_name_the_stages_and_have_two_colours() -> None:
    svg = training_plot(epochs(), "harp", "certified by IBP")
    assert {"pretrain", "prune", "finetune"} <= set(words(svg))
    assert {"training loss", "validation, %", "epoch", "clean", "certified by IBP"} <= set(
        words(svg)
    )
    assert color_of("dense") in svg and color_of("harp") in svg and color_of("hydra") not in svg
    # a run of one stage, and a run of one epoch, have a plot too
    assert color_of("harp") not in training_plot(epochs()[:4], "harp", "PGD-10")
    assert "prune" in words(training_plot(epochs()[4:5], "harp", "PGD-10"))


def test_the_shrink_phase_has_its_name_and_the_colour_of_the_method() -> None:
    """Between the dense network and the learned last cut; its density falls along the plot."""
    falling = [
        replace(epochs()[4], stage="shrink", density=density, densities={"conv.weight": density})
        for density in (0.8, 0.4, 0.2)
    ]
    all_epochs = [*epochs()[:4], *falling, *epochs()[4:]]
    for svg in (
        training_plot(all_epochs, "gradual", "PGD-10"),
        kept_plot(all_epochs, "gradual", "weights"),
    ):
        said = words(svg)
        places = [said.index(name) for name in ("pretrain", "shrink", "prune", "finetune")]
        assert places == sorted(places)
        assert color_of("gradual") in svg and color_of("dense") in svg
        assert color_of("gradual magnitude") not in svg
    # magnitude has no stage of this name: its density falls in the stage finetune
    only = [replace(epoch, stage="finetune") for epoch in falling]
    assert "finetune" in words(kept_plot([*epochs()[:4], *only], "magnitude", "weights"))


def test_a_stage_whose_name_has_no_room_is_not_named() -> None:
    many = epochs()[:1] * 98 + epochs()[4:5] + epochs()[6:7]
    assert {"prune", "finetune"}.isdisjoint(words(training_plot(many, "harp", "PGD-10")))


def test_what_is_kept_is_drawn_by_layer_and_as_a_budget() -> None:
    said = words(kept_plot(epochs(), "harp", "weights"))
    short = f"…{LONG[-39:]}"  # all of it would be cut off
    assert {"conv.weight", short, "budget of weights", "share kept, %", "100"} <= set(said)
    old = [replace(epoch, densities={}) for epoch in epochs()]
    assert "conv.weight" not in words(kept_plot(old, "harp", "weights"))
    deep = [
        replace(epoch, densities={f"layer{i}": 0.1 for i in range(40)}) for epoch in epochs()[4:]
    ]
    svg = kept_plot(deep, "harp", "weights")  # 40 names would be unreadable
    assert "layer3" not in words(svg) and svg.count("<path") > 40


def test_accuracy_against_size_has_both_networks_with_intervals() -> None:
    facts = run_facts()
    assert facts.dense is not None and facts.pruned is not None
    svg = size_plot(facts.dense, facts.pruned, "harp", "weights")
    assert {f"{a}, {b}" for a in ("dense", "harp") for b in ("clean", "PGD-10")} <= set(words(svg))
    assert "parameters that are not zero" in words(svg) and "10,000" in words(svg)
    assert "parameters" in words(size_plot(facts.dense, facts.pruned, "harp", "channels"))
