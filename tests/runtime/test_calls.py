"""Wrong calls are explained, right ones and other errors pass unchanged."""

import inspect
import linecache
import timeit

import pytest

from robust_plugin.runtime.calls import explain_wrong_calls, user_level


@explain_wrong_calls
def attack(threat, *, steps=10, step_size=None):
    """The docstring."""
    return threat, steps, step_size


@explain_wrong_calls
class Pruner:
    def __init__(self, model, density=None, *, exclude=()):
        self.model, self.density, self.exclude = model, density, exclude

    def follow(self, optimizer, *, epochs=None):
        return optimizer, epochs

    def __call__(self, x, y):
        return x + y

    @classmethod
    def read(cls, path):
        return cls(path)

    @property
    def kept(self):
        return self.density


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: attack(1, alpha=2), "has no argument 'alpha'; give step_size="),
        (lambda: attack(1, num_steps=2), "no argument 'num_steps'; here it is steps=. Legal: th"),
        (lambda: attack(1, zebra=2), "no argument 'zebra'. Legal: threat, steps, step"),
        (lambda: attack(steps=1), r"attack takes \(threat, steps, step_size\), and got no threat"),
        (lambda: attack([], 2), "takes threat by position, and got 2 values; give the rest"),
        (lambda: attack("Linf", 0.1), 'takes no norm and eps; give threat=ThreatModel\\("Linf"'),
        (lambda: Pruner(), r"Pruner takes \(model, density, exclude\), and got no model; give"),
        (lambda: Pruner(1, 2, 3), "Pruner takes model and density by position, and got 3 values"),
        (lambda: Pruner(1, 2, density=3), "Pruner gets density by position and by name; give it"),
        (lambda: Pruner(1, densities=3), "Pruner has no argument 'densities'; give density=0.1"),
        (lambda: Pruner(1).follow(1, epoch=2), "follow has no argument 'epoch'; here it is epochs"),
        (lambda: Pruner(1).follow(), "follow takes .*, and got no optimizer; give an optimizer"),
        (lambda: Pruner(1)(2), r"Pruner\(...\) takes \(x, y\), and got no y; give the labels y"),
        (lambda: Pruner.read(), r"read takes \(path\), and got no path; give path"),
        (lambda: Pruner.read(1, 2), "read takes path by position, and got 2 values; leave some"),
    ],
)
def test_a_wrong_call_is_explained(call, says):
    with pytest.raises(TypeError, match=says) as caught:
        call()
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ is False
    trace = caught.traceback[-1]
    assert trace.path.name == "calls.py" and "raise" in linecache.getline(
        str(trace.path), trace.lineno + 1
    )


def test_right_calls_are_as_before():
    assert attack(1, steps=2, step_size=3) == (1, 2, 3)
    pruner = Pruner(1, 0.5, exclude=[2])
    assert (pruner.model, pruner.kept, pruner.exclude) == (1, 0.5, [2])
    assert pruner.follow(3, epochs=4) == (3, 4) and pruner(5, 6) == 11
    assert Pruner.read("a").model == "a" and isinstance(Pruner.read("a"), Pruner)


def test_signatures_and_docstrings_stay():
    assert str(inspect.signature(attack)) == "(threat, *, steps=10, step_size=None)"
    assert str(inspect.signature(Pruner)) == "(model, density=None, *, exclude=())"
    assert attack.__name__ == "attack" and attack.__doc__ == "The docstring."


def test_errors_from_inside_pass_unchanged():
    @explain_wrong_calls
    def broken(x):
        return len(x)

    @explain_wrong_calls
    def calls_another_wrongly(x):
        def nothing():
            return x

        return nothing(1)

    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        broken(3)
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        calls_another_wrongly(3)


def test_a_right_call_costs_less_than_two_microseconds():
    def plain(x):
        return x

    wrapped = explain_wrong_calls(plain)
    n = 20_000
    extra = min(
        timeit.timeit(lambda: wrapped(1), number=n) - timeit.timeit(lambda: plain(1), number=n)
        for _ in range(5)
    )
    assert extra / n < 2e-6


def test_the_level_of_the_users_line():
    assert user_level() == 1  # this file is not of the package
    found = {}
    inside = {"__name__": "robust_plugin.made_up", "user_level": user_level, "found": found}
    exec("def deep():\n    found['level'] = user_level()\ndef shallow():\n    deep()\n", inside)
    inside["shallow"]()
    assert found["level"] == 3  # deep, shallow, and this line
