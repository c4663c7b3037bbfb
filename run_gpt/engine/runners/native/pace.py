"""Choice between one thread and all threads for small steps, by the measured times of earlier steps.

In a pass the threads wait for each other's last items some eight times in each layer. If there is little work between
two waits, a single thread may be faster. Only a measurement can tell.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

MOST_TOKENS = 32
"""Largest step that may run on one thread. Larger steps have enough work for all threads, and would take too long."""
TRIAL = 3
"""Number of consecutive steps that try the other choice."""
FIRST_PAUSE, LONGEST_PAUSE = 8, 512
"""Number of steps between two trials; it doubles after each trial that changed nothing."""
BETTER = 0.95
"""Largest ratio of the other choice's time to the current one's at which it is adopted."""


class Pace:
    """Chooser between one thread and all for the steps of one runner, one step at a time."""

    def __init__(self, threads: int):
        self._threads = threads
        self._sizes: dict[int, _Size] = {}

    @contextmanager
    def step(self, tokens: int) -> Iterator[bool]:
        """Run a step of `tokens` tokens within the block: on one thread if this yields True, else on all."""
        if self._threads == 1 or tokens > MOST_TOKENS:
            yield self._threads == 1
            return
        size = self._sizes.setdefault(tokens, _Size())
        start = time.perf_counter()
        yield size.alone
        size.note(time.perf_counter() - start)


class _Size:
    """Measurements of steps of one size."""

    def __init__(self) -> None:
        self._chosen_alone = False
        self._recent: deque[float] = deque(maxlen=TRIAL)
        self._trial: list[float] = []
        self._pause = self._left = FIRST_PAUSE

    @property
    def alone(self) -> bool:
        """True when the next step runs on one thread."""
        return self._chosen_alone != (self._left == 0)

    def note(self, seconds: float) -> None:
        """Record the time of a step."""
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
