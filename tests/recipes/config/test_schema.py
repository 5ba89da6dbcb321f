"""The settings of a recipe: defaults, descriptions for every option, and what is refused."""

import dataclasses
import re
from typing import Any

import pytest

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import (
    DataConfig,
    EvaluationConfig,
    RecipeConfig,
    StageConfig,
    ThreatConfig,
)

ALL = (
    *(CompareConfig, EvaluateConfig, ObjectiveConfig, DataConfig, EvaluationConfig, RecipeConfig),
    *(StageConfig, ThreatConfig),
)


@pytest.mark.parametrize("kind", ALL)
def test_every_setting_has_a_description_in_its_order(kind: Any) -> None:
    described = re.findall(r"^        (\w+): (.*)$", kind.__doc__, re.MULTILINE)
    assert [name for name, _ in described] == [field.name for field in dataclasses.fields(kind)]
    for name, text in described:  # a description begins with the thing
        assert text.split()[0] not in ("of", "for", "by", "how", "likewise", "what", "it"), name


@pytest.mark.parametrize("kind", ALL)
def test_settings_cannot_be_changed(kind: Any) -> None:
    config, (first, *_) = kind(), dataclasses.fields(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, first.name, None)


def test_the_phases_of_a_recipe_have_defaults_of_their_own() -> None:
    config = RecipeConfig()
    phases = (config.pretrain, config.prune, config.finetune)
    assert [phase.epochs for phase in phases] == [100, 20, 100]
    assert [phase.lr for phase in phases] == [0.1, 0.1, 0.01]
    assert [phase.select for phase in phases] == ["best", "last", "best"]
    assert [phase.ramp for phase in phases] == [0.6, 0.0, 0.0]


def test_a_threat_model_is_built_from_a_fraction() -> None:
    threat = ThreatConfig("L2", "3/4").build()
    assert (threat.norm, threat.eps) == ("L2", 0.75)
    with pytest.raises(ValueError, match="eps is '8/0'"):
        ThreatConfig(eps="8/0").build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"structure": "filters"}, "structure is 'filters'; legal: weights, channels"),
        ({"prune": {"optimizer": "lion"}}, "prune.optimizer is 'lion'; legal: sgd, adam"),
        (
            {"evaluation": {"certify": "crown"}},
            r"evaluation.certify is 'crown' \(did you mean crown-ibp\?\); legal: ibp, crown-",
        ),
        (
            {"threat": {"norm": "linf"}},
            r"threat.norm is 'linf' \(did you mean Linf\?\); legal: Linf, L2, L1",
        ),
    ],
)
def test_an_illegal_choice_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(RecipeConfig, content, where="here")
