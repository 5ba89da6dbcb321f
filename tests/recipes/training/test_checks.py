"""Settings that would fail only after hours are refused before training."""

from typing import Any

import pytest
from small_recipe import small

from robust_plugin.recipes.training.checks import at_least, check_settings


@pytest.mark.parametrize(("least", "legal"), [(0, "0 or more"), (1, "at least 1")])
def test_a_count_below_its_least_value_is_refused(least: int, legal: str) -> None:
    at_least("epochs", least, least)
    with pytest.raises(ValueError, match=f"^epochs is {least - 1}; legal: {legal}.$"):
        at_least("epochs", least - 1, least)


@pytest.mark.parametrize("recipe", ["magnitude", "hydra", "harp", "gradual"])
def test_the_settings_of_a_small_run_are_legal(recipe: str) -> None:
    check_settings(small(recipe))


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("hydra", {"structure": "channels", "rates": "erk"}, "rates is 'erk', which follows"),
        ("hydra", {"structure": "channels", "pattern": "2:4"}, "pattern is '2:4', but structure"),
        ("hydra", {"budget": "channels"}, "budget is 'channels', but structure is 'weights'"),
        ("hydra", {"round_to": 8}, "round_to is 8, but structure is 'weights'"),
        ("hydra", {"round_to": 0}, r"round_to is 0; legal: 1 \(any count\) or more"),
        ("harp", {"learn": "scores", "pattern": "n:4"}, "pattern is 'n:4', whose n each layer"),
        ("harp", {"gamma_step": 0.1}, "gamma_step is 0.1, but control is 'held'"),
        ("hydra", {"pretrain": {"decay_scores": True}}, "pretrain.decay_scores is True, but only"),
        ("harp", {"finetune": {"decay_scores": True}}, "finetune.decay_scores is True, but only"),
        ("hydra", {"evaluation": {"curve": -1}}, "^evaluation.curve is -1; legal: 0 or more"),
        ("hydra", {"evaluation": {"votes": 0}}, "^evaluation.votes is 0; legal: at least 1"),
        ("hydra", {"objective": {"name": "trades", "steps": 0}}, "steps is 0"),
        ("magnitude", {"rounds": 2, "schedule": "cubic"}, "rounds is 2, but schedule is 'cubic'"),
        ("magnitude", {"schedule": "cubic", "shrink": 1.2}, "shrink is 1.2; legal: a share of"),
        ("magnitude", {"finetune": {"epochs": 0}}, "finetune.epochs is 0; legal: at least 1"),
        ("hydra", {"finetune": {"epochs": -1}}, r"epochs is -1; legal: 0 \(weights as they were"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    recipe: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(small(recipe, **settings))


def test_fine_tuning_may_be_left_out_where_scores_are_learned() -> None:
    check_settings(small("hydra", finetune={"epochs": 0}))
