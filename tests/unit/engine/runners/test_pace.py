"""Without these tests decoding could wait for a thread whose core another program uses."""

from collections.abc import Callable

import pytest

from run_gpt.engine.runners.native import pace as module
from run_gpt.engine.runners.native.pace import LONGEST_PAUSE, MOST_TOKENS, TRIAL, Pace


class Clock:
    """Clock of steps whose times a test sets, for steps on one thread and on all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[bool], float]):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def run(self, pace: Pace, steps: int, tokens: int = 1) -> list[bool]:
        """Run steps; returns for each True when it ran on one thread."""
        ways = []
        for _ in range(steps):
            with pace.step(tokens) as alone:
                self.now += self.seconds(alone)
            ways.append(alone)
        return ways


@pytest.mark.parametrize("alone_is_faster", [True, False])
def test_the_faster_way_is_found_and_kept(monkeypatch: pytest.MonkeyPatch, alone_is_faster: bool) -> None:
    clock = Clock(monkeypatch, lambda alone: 1.0 if alone == alone_is_faster else 2.0)
    ways = clock.run(Pace(2), 5000)
    assert ways[:8] == [False] * 8
    assert ways[200:].count(not alone_is_faster) < 0.02 * len(ways)


def test_it_follows_when_a_neighbour_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = False
    clock, pace = Clock(monkeypatch, lambda alone: 1.0 if alone == busy else 2.0), Pace(2)
    clock.run(pace, 3000)
    for busy in (True, False, True):
        clock.run(pace, LONGEST_PAUSE + TRIAL)
        assert clock.run(pace, 5) == [busy] * 5


def test_a_difference_that_is_none_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda alone: 0.97 if alone else 1.0)
    assert clock.run(Pace(2), 3000).count(True) < 60


def test_large_steps_take_all_threads_and_one_thread_is_always_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda alone: 1.0 if alone else 2.0)
    assert clock.run(Pace(2), 100, MOST_TOKENS + 1) == [False] * 100
    assert clock.run(Pace(1), 100) == [True] * 100


def test_sizes_are_judged_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = Clock(monkeypatch, lambda alone: 1.0 if alone else 2.0), Pace(2)
    clock.run(pace, 100, 1)
    clock.seconds = lambda alone: 2.0 if alone else 1.0
    assert clock.run(pace, 8, 16) == [False] * 8
