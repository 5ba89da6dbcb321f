"""States of pruners: one that fits is taken, and one of another pruner is refused by its name."""

import json

import pytest

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner
from robust_plugin.pruning.state import refuse_ended, refuse_other

# A few steps do not take the rates to their target, and the pruner warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_a_state_of_after_finalize_is_not_one_of_masks(cnn, tmp_path, attach, train, kind):
    ended, model = attach(kind, cnn(), 0.3), cnn()
    if kind != "magnitude":
        train(ended, "prune")
    train(ended, "finetune")
    before = ended.state_dict()
    ended.finalize()
    pruner = attach(kind, model, 0.3)
    kept = pruner.kept
    with pytest.raises(ValueError, match="was taken after finalize, when the masks were gone"):
        pruner.load_state_dict(ended.state_dict())
    assert pruner.phase == "attached" and pruner.kept == kept
    with pytest.raises(ValueError, match="taken in phase 'finetune', and this pruner is finalized"):
        ended.load_state_dict(before)
    ended.load_state_dict(ended.state_dict())
    assert ended.phase == "finalized"


def test_patterns_and_gamma_are_compared(cnn, tmp_path):
    model = cnn()
    pruner = HydraPruner(model, pattern="2:4")
    with pytest.raises(ValueError, match="pattern was .1, 4., here .2, 4."):
        pruner.check_state(HydraPruner(cnn(), pattern="1:4").state_dict())
    one = HarpPruner(cnn(), 0.1, control="hinge", gamma_step=0.01)
    with pytest.raises(ValueError, match="gamma_step was 0.1, here 0.01"):
        one.check_state(HarpPruner(cnn(), 0.1, control="hinge", gamma_step=0.1).state_dict())


def test_a_state_is_plain_json_and_fits_its_own_pruner(cnn):
    for pruner in (
        HydraPruner(cnn(), 0.1),
        HarpPruner(cnn(), 0.1),
        HydraPruner(cnn(), pattern="2:4"),
    ):
        state = json.loads(json.dumps(pruner.state_dict()))
        assert state == pruner.state_dict()
        pruner.check_state(state)
        assert state["settings"]["groups"] == [group.name for group in pruner.groups]


def test_the_density_counts_where_something_is_learned(cnn):
    with pytest.raises(ValueError, match="of another pruner: density was 0.2, here 0.1"):
        HydraPruner(cnn(), 0.1).check_state(HydraPruner(cnn(), 0.2).state_dict())
    fixed = MagnitudePruner(cnn(), 0.1)
    fixed.load_state_dict(MagnitudePruner(cnn(), 0.2).state_dict())
    assert fixed.budget.density == 0.2  # it learns nothing and takes the state's


def test_every_setting_that_differs_is_named():
    settings = {"learn": ["scores"], "groups": ["a"], "round_to": 1}
    state = {"density": 0.1, "settings": {"learn": ["scores"], "groups": ["b"], "round_to": 8}}
    with pytest.raises(ValueError, match="groups was .'b'., here .'a'.; round_to was 8, here 1$"):
        refuse_other(state, settings, 0.1)
    del state["settings"]["round_to"]  # as written before the setting existed
    state["settings"]["groups"] = ["a"]
    refuse_other(state, settings, 0.1)


@pytest.mark.parametrize("saved", ["attached", "prune", "finetune", "finalized"])
@pytest.mark.parametrize("phase", ["attached", "prune", "finetune", "finalized"])
def test_states_and_pruners_are_finalized_alike(saved, phase):
    if (saved == "finalized") == (phase == "finalized"):
        refuse_ended(saved, phase)
    else:
        with pytest.raises(ValueError, match="finalize"):
            refuse_ended(saved, phase)
