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


def test_a_length_that_is_known_stays() -> None:
    found = Progress(settled=False, prune=PhaseSteps(0, 4, 10))
    found.load(Progress(settled=False, prune=PhaseSteps(7, 2, 5)).state())
    assert found.prune == PhaseSteps(7, 4, 10)


def test_what_was_done_last() -> None:
    progress = Progress(settled=False)
    assert progress.last == ("prune", 0) and not progress.has_learned
    progress.prune.step = 4
    assert progress.last == ("prune", 4) and progress.has_learned
    progress.finetune_steps = 2
    assert progress.last == ("finetune", 2)
    assert Progress(settled=True, updated=True).has_learned
