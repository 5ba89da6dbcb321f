"""Two functions are called in turns, and their median times are those of a clock."""

from collections.abc import Callable

from robust_plugin.runtime.timing import alternating


def test_medians_by_a_given_clock_without_the_first_turn() -> None:
    now, order = [0.0], []
    durations = {"a": iter([50.0, 3.0, 1.0, 2.0, 9.0, 4.0]), "b": iter([50.0, 7.0, 7.0, 8.0, 1, 0])}

    def call(name: str) -> Callable[[], None]:
        def function() -> None:
            order.append(name)
            now[0] += next(durations[name])

        return function

    assert alternating(call("a"), call("b"), seconds=0, clock=lambda: now[0]) == (3.0, 7.0)
    assert order == ["a", "b"] * 6


def test_turns_go_on_for_the_seconds_that_are_asked_for(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now, calls = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def second() -> None:
        calls.append(1)
        now[0] += 1.0

    assert alternating(second, lambda: None, seconds=20) == (1.0, 0.0)
    assert len(calls) == 20
