"""Two attacks that are not the same must not share a journal; the same one must, in any process."""

import functools
import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from robust_plugin import IBP, ThreatModel, pgd, verify
from robust_plugin.attacks.contract import guarded
from robust_plugin.runtime.settings_digest import description

THREAT = ThreatModel("Linf", eps=0.05)
SIZE = 0.1


def move(model, x, y, size=0.1):
    return x + size


def by_global(model, x, y):
    return x + SIZE


def moving(size):
    return lambda model, x, y: x + size


def holding(value):
    return lambda model, x, y: x + value


class Steps:
    """An instance whose repr is its address."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, model, x, y):
        return x + self.steps


class OtherSteps(Steps):
    def __call__(self, model, x, y):
        return x - self.steps


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size

    def __call__(self, model, x, y):
        return x + self.size


@dataclass(frozen=True)
class Field:
    """A dataclass that hides its field from its repr, and keeps a cache."""

    direction: object = field(repr=False)
    cache: list = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, model, x, y):
        return x + self.direction


class Surrogate(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(2, 2), scale
        nn.init.ones_(self.linear.weight), nn.init.zeros_(self.linear.bias)


def itself(size):
    def attack(model, x, y):
        return attack if size > 1 else x + size

    return attack


def reading(value):
    """A function of a module whose global is ``value``."""
    there = {"SIZE": value}
    exec("def attack(model, x, y):\n    return x + SIZE", there)
    return there["attack"]


def of_source(source):
    there = {}
    exec(source, there)
    return there["attack"]


PAIRS = {
    "closures": (lambda: moving(0.1), lambda: moving(0.2)),
    "closures over tensors": (lambda: holding(torch.ones(3)), lambda: holding(torch.zeros(3))),
    "closures over long tensors": (
        lambda: holding(torch.arange(5000)),  # of which repr shows six
        lambda: holding(torch.arange(5000).index_fill(0, torch.tensor([2500]), 7)),
    ),
    "closures over networks": (lambda: holding(Surrogate(1)), lambda: holding(Surrogate(2))),
    "closures over themselves": (lambda: itself(0.1), lambda: itself(0.2)),
    "code": (
        lambda: of_source("attack = lambda m, x, y: x + 1"),
        lambda: of_source("attack = lambda m, x, y: x - 1"),
    ),
    "called functions": (
        lambda: of_source("attack = lambda m, x, y: x.sign()"),
        lambda: of_source("attack = lambda m, x, y: x.abs()"),
    ),
    "constants in inner functions": (
        lambda: of_source("attack = lambda m, x, y: [x + i for i in (0, 1)]"),
        lambda: of_source("attack = lambda m, x, y: [x + i for i in (0, 2)]"),
    ),
    "defaults": (
        lambda: of_source("attack = lambda m, x, y, size=1: x"),
        lambda: of_source("attack = lambda m, x, y, size=2: x"),
    ),
    "globals": (lambda: reading(0.1), lambda: reading(0.2)),
    "partials": (
        lambda: functools.partial(move, size=0.1),
        lambda: functools.partial(move, size=0.2),
    ),
    "guarded attacks": (
        lambda: guarded(moving(0.1), THREAT),
        lambda: guarded(pgd(THREAT, steps=50), THREAT),
    ),
    "guarded PGD": (
        lambda: guarded(pgd(THREAT, steps=10), THREAT),
        lambda: guarded(pgd(THREAT, steps=50), THREAT),
    ),
    "guards": (
        lambda: guarded(move, THREAT),
        lambda: guarded(move, ThreatModel("Linf", eps=0.05, high=2.0)),
    ),
    "instances": (lambda: Steps(1), lambda: Steps(2)),
    "classes of equal state": (lambda: Steps(1), lambda: OtherSteps(1)),
    "bound methods": (lambda: Steps(1).__call__, lambda: Steps(2).__call__),
    "slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "fields outside the repr": (lambda: Field(torch.ones(2)), lambda: Field(torch.zeros(2))),
    "attributes of networks": (lambda: Steps(Surrogate(1)), lambda: Steps(Surrogate(2))),
    "sets": (lambda: Steps({"a", "b"}), lambda: Steps({"a", "c"})),
    "certifiers": (lambda: IBP(THREAT), lambda: IBP(ThreatModel("Linf", eps=0.1))),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_two_that_are_not_the_same_have_two_descriptions(kind):
    one, other = PAIRS[kind]
    assert description(one()) == description(one())
    assert description(one()) != description(other())


def test_a_global_that_is_set_anew_and_a_cache(monkeypatch):
    before = description(by_global)
    monkeypatch.setitem(globals(), "SIZE", 0.2)
    assert description(by_global) != before
    cached = Field(1.0)
    before = description(cached)
    cached.cache.append(1)
    assert description(cached) == before


def test_another_process_finds_the_same_descriptions():
    """Under other seeds of hashes, which decide the order of sets, and so other addresses."""
    program = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "import test_settings_digest as t\n"
        "print([t.description(make()) for pair in t.PAIRS.values() for make in pair])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] and len(found[0]) > 100


@pytest.mark.parametrize("state", [threading.Lock(), (i for i in range(3))])
def test_a_state_that_cannot_be_read_is_refused(state):
    with pytest.raises(TypeError, match="a journal cannot tell .* frozen dataclass"):
        description(Steps(state))


def within(attack):
    return guarded(lambda model, x, y: THREAT.project(attack(model, x, y), x), THREAT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (guarded(lambda model, x, y: x, THREAT), guarded(pgd(THREAT, steps=50), THREAT)),
        (moving(0.0), moving(0)),
        (within(Steps(1)), within(Steps(2))),
        (within(functools.partial(move, size=0)), within(functools.partial(move, size=-1))),
    ],
)
def test_a_journal_answers_for_its_own_attack_alone(one, other, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x = torch.rand(4, 1, 4, 4)
    y = model(x).argmax(1)
    found = verify(model, x, y, {"IBP": IBP(THREAT), "attack": one}, journal=tmp_path)
    again = verify(model, x, y, {"IBP": IBP(THREAT), "attack": one}, journal=tmp_path)
    assert again.verdicts == found.verdicts
    with pytest.raises(ValueError, match="the journal of another evaluation: stages"):
        verify(model, x, y, {"IBP": IBP(THREAT), "attack": other}, journal=tmp_path)


def test_a_method_that_cannot_be_described_is_refused_with_a_journal_alone(tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), torch.rand(2, 1, 4, 4)
    lock = threading.Lock()

    def attack(model, x, y):
        with lock:
            return x

    methods, y = {"IBP": IBP(THREAT), "attack": attack}, model(x).argmax(1)
    with pytest.raises(TypeError, match="or no journal"):
        verify(model, x, y, methods, journal=tmp_path)
    assert math.isfinite(verify(model, x, y, methods).share("verified"))
