"""The library that is found, and what is said without one."""

import logging
import sys

import pytest
from autoattack_reference import Trained

from robust_plugin import ThreatModel
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.adapters.autoattack.library import library, quiet


def test_without_the_library_one_sentence_says_what_to_type(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = trained(10)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    attack = AutoAttack(ThreatModel("Linf", 0.1))  # making one needs nothing
    monkeypatch.setitem(sys.modules, "autoattack", None)
    for call in (lambda: attack(model, x, y), lambda: attack.check_classes(10)):
        with pytest.raises(ImportError) as error:
            call()
        assert str(error.value) == "AutoAttack needs: pip install pyautoattack"


def test_the_library_is_silent_inside_and_as_before_afterwards() -> None:
    name, found = library()
    assert name in ("pyautoattack", "autoattack") and found.__name__ == "AutoAttack"
    logger = logging.getLogger("auto-attack")
    for before in (False, True):
        logger.disabled = before
        with pytest.raises(KeyError), quiet():
            assert logger.disabled
            raise KeyError
        assert logger.disabled == before
    logger.disabled = False
