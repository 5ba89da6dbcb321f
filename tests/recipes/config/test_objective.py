"""The settings of the loss: legal names, and a kappa of two numbers."""

from typing import get_args

import pytest

from robust_plugin.recipes.config.objective import ObjectiveConfig, ObjectiveName
from robust_plugin.recipes.config.read import build


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_name_is_legal(name: ObjectiveName) -> None:
    assert build(ObjectiveConfig, {"name": name}, where="here") == ObjectiveConfig(name)


def test_an_unknown_name_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="name is 'pgd'; legal: benign, adversarial, trades, mart"):
        build(ObjectiveConfig, {"name": "pgd"}, where="here")


def test_kappa_is_two_numbers() -> None:
    assert build(ObjectiveConfig, {"kappa": [1, "5e-1"]}, where="here").kappa == (1.0, 0.5)
    for kappa in ([], [1], [1, 0.5, 0]):
        with pytest.raises(ValueError, match="kappa is .*; legal: a list of 2"):
            build(ObjectiveConfig, {"kappa": kappa}, where="here")
