"""Published figures: complete, as published, and of the right settings."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from robust_plugin.recipes.catalogue.published import (
    Figure,
    figures,
    published_densities,
)
from robust_plugin.recipes.config.read import read_preset
from robust_plugin.recipes.models.registry import NAMES
from robust_plugin.recipes.papers.registry import RECIPES


def figures_with(**want: Any) -> list[Figure]:
    return [
        each
        for each in figures()
        if all(getattr(each, name) == value for name, value in want.items())
    ]


def test_figures_are_whole() -> None:
    keys = [
        (f.method, f.data, f.model, f.objective, f.structure, f.density, f.metric)
        for f in figures()
    ]
    assert len(set(keys)) == len(keys)  # no figure is there twice
    for figure in figures():
        assert 0 < figure.value < 100 and 0 < figure.density < 1
        assert figure.model is None or figure.model in NAMES
        assert figure.source and figure.description
        assert figure.dense is None or figure.dense > figure.value - 3
        assert set(figure.conditions) <= {"eps", "epochs", "attack", "extra"}
    counts = Counter((figure.source.partition(",")[0], figure.structure) for figure in figures())
    assert counts == {
        ("Sehwag et al. 2019", "weights"): 3,
        ("HYDRA (Sehwag et al. 2020)", "weights"): 2 * (4 * 2 * 3) + 3,  # era, smoothed, WRN-28-10
        ("adversarial-pruning benchmark (Piras et al. 2024)", "weights"): 2 * 3 * (2 * 7 + 1),
        ("adversarial-pruning benchmark (Piras et al. 2024)", "channels"): 2 * 3 * 3,
    }


@pytest.mark.parametrize(
    ("want", "value", "dense"),
    [
        (dict(method="hydra", data="cifar10", model="wrn-28-4", metric="era"), 54.2, 57.2),
        (dict(method="magnitude", data="svhn", model="vgg16-bn", metric="era"), 50.4, 53.5),
        (dict(method="hydra", data="svhn", model="wrn-28-4", metric="smoothed"), 62.0, 62.2),
        (dict(method="harp", data="svhn", model="resnet18", metric="autoattack"), 45.95, None),
        (dict(method="TwinRep", model="vgg16-bn", metric="benign"), 74.16, None),
    ],
)
def test_a_figure_at_5_percent_is_what_was_published(
    want: dict[str, Any], value: float, dense: float | None
) -> None:
    (figure,) = figures_with(density=0.05, structure="weights", **want)
    assert (figure.value, figure.dense) == (value, dense)


def test_a_variation_is_no_published_system() -> None:
    def densities(name: str, command: str = "hydra") -> tuple[float, ...]:
        return published_densities(command, read_preset(name, RECIPES[command].config))

    assert densities("hydra/cifar10-wrn28-4") == (0.1, 0.05, 0.01)
    assert densities("hydra/cifar10-wrn28-4", "magnitude") == (0.1, 0.05, 0.01)
    assert densities("harp/cifar10-vgg16-channels", "harp") == (0.5, 0.25, 0.1)
    for name in ("-erk", "-lamp", "-hidden", "-benign", "-channels"):
        assert densities(f"hydra/cifar10-wrn28-4{name}") == ()
    assert densities("harp/cifar10-vgg16-rates", "harp") == ()
    assert densities("hydra/digits") == densities("hydra/imagenet-resnet50") == ()


def test_figures_cannot_be_written_over() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures()[0].value = 99.9  # type: ignore[misc]
