"""The settings of an evaluation: the same words as those of a recipe, and what is refused."""

from pathlib import Path
from typing import get_args

import pytest

from robust_plugin.recipes.config.evaluate import CertifierName, EvaluateConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import RecipeConfig


def test_a_file_of_weights_is_a_checkpoint_as_in_a_recipe() -> None:
    given = {"checkpoint": "dense.pt"}
    for kind in (EvaluateConfig, RecipeConfig):
        assert build(kind, given, where="here").checkpoint == Path("dense.pt")
    assert EvaluateConfig().checkpoint == Path("model.safetensors")
    with pytest.raises(ValueError, match="unknown setting weights"):
        build(EvaluateConfig, {"weights": "dense.pt"}, where="here")


def test_radii_and_attacks_are_texts() -> None:
    config = build(EvaluateConfig, {"radii": [0.1, "8/255"], "attacks": ["fab"]}, where="here")
    assert config.radii == ("0.1", "8/255") and config.attacks == ("fab",)


def test_a_certifier_is_one_of_the_legal_names() -> None:
    for name in get_args(CertifierName):
        assert build(EvaluateConfig, {"certify": name}, where="here").certify == name
    with pytest.raises(
        ValueError,
        match=r"certify is 'crown' \(did you mean crown-ibp\?\); legal: none, ibp, crown-ibp",
    ):
        build(EvaluateConfig, {"certify": "crown"}, where="here")
