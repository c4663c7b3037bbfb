"""`Pace`: whether a small step runs on one thread or on all, as the times of the steps before it tell.

In a pass the threads wait for each other's last items some eight times in each layer. Where there is little to do
between two waits, one thread alone may be faster; whether it is cannot be told before.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

MOST_TOKENS = 32
"""Larger steps have enough to do for all threads, and one alone would hold everybody up."""
TRIAL = 3
"""Steps that try the other way, one after the other."""
FIRST_PAUSE, LONGEST_PAUSE = 8, 512
"""Steps between two trials: twice as many after each that told nothing new."""
BETTER = 0.95
"""The part of the time that the other way may take at most to be chosen."""


class Pace:
    """Of one runner with so many threads. One step at a time."""

    def __init__(self, threads: int):
        self._threads = threads
        self._sizes: dict[int, _Size] = {}

    @contextmanager
    def step(self, tokens: int) -> Iterator[bool]:
        """Run a step of so many tokens inside: on one thread if this gives True, else on all."""
        if self._threads == 1 or tokens > MOST_TOKENS:
            yield self._threads == 1
            return
        size = self._sizes.setdefault(tokens, _Size())
        start = time.perf_counter()
        yield size.alone
        size.note(time.perf_counter() - start)


class _Size:
    """What is known of steps of one size."""

    def __init__(self) -> None:
        self._chosen_alone = False
        self._recent: deque[float] = deque(maxlen=TRIAL)
        self._trial: list[float] = []
        self._pause = self._left = FIRST_PAUSE

    @property
    def alone(self) -> bool:
        """Whether the next one runs on one thread."""
        return self._chosen_alone != (self._left == 0)

    def note(self, seconds: float) -> None:
        """It took so long."""
        if self._left > 0:
            self._recent.append(seconds)
            self._left -= 1
            return
        self._trial.append(seconds)
        if len(self._trial) < TRIAL:
            return
        if median(self._trial) < BETTER * median(self._recent):
            self._chosen_alone, self._pause = not self._chosen_alone, FIRST_PAUSE
            self._recent.clear()
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._left = self._pause
        self._trial.clear()
