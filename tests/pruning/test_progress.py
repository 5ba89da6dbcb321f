"""How far a pruner is."""

from __future__ import annotations

import json

from robust_plugin.budget.control import PhaseSteps
from robust_plugin.pruning.progress import Progress


def test_a_state_comes_back_through_json() -> None:
    saved = Progress(settled=True, prune=PhaseSteps(7, 2, 5), finetune_steps=3, updated=True)
    found = Progress(settled=False)
    found.load(json.loads(json.dumps(saved.state())))
    assert found == Progress(True, PhaseSteps(7, 2, 5), 3, True, loaded_step=7)
    saved = Progress(
        settled=False, shrink=PhaseSteps(4, 2, 3), prune=PhaseSteps(2, 1, 5), most=(3, 1)
    )
    found = Progress(settled=True, shrunk=False)
    found.load(json.loads(json.dumps(saved.state())))
    assert found == Progress(
        settled=False,
        shrink=PhaseSteps(4, 2, 3),
        prune=PhaseSteps(2, 1, 5),
        most=(3, 1),
        shrunk=True,
        loaded_step=2,
    )


def test_a_length_that_is_known_stays() -> None:
    found = Progress(settled=False, prune=PhaseSteps(0, 4, 10))
    found.load(Progress(settled=False, prune=PhaseSteps(7, 2, 5)).state())
    assert found.prune == PhaseSteps(7, 4, 10)
    found = Progress(settled=False, shrink=PhaseSteps(3, 4, 10), shrunk=False)
    found.load(Progress(settled=False, shrink=PhaseSteps(9, 2, 5), shrunk=False).state())
    assert found.shrink == PhaseSteps(9, 4, 10) and found.shrink.progress == 9 / 40


def test_what_was_done_last() -> None:
    progress = Progress(settled=False)
    assert progress.last == ("prune", 0) and not progress.has_learned
    progress.prune.step = 4
    assert progress.last == ("prune", 4) and progress.has_learned
    progress.finetune_steps = 2
    assert progress.last == ("finetune", 2)
    assert Progress(settled=True, updated=True).has_learned


def test_what_was_done_last_with_a_shrink_phase() -> None:
    progress = Progress(settled=False, shrunk=False)
    assert progress.last == ("shrink", 0) and not progress.has_learned
    progress.shrink.step = 5
    assert progress.last == ("shrink", 5) and not progress.has_learned
    progress.shrunk = True
    assert progress.last == ("prune", 0)
    progress.prune.step = 2
    assert progress.last == ("prune", 2) and progress.has_learned
    progress.finetune_steps = 1
    assert progress.last == ("finetune", 1)
