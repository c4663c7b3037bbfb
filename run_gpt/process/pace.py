"""`Pace`: the time that the latest tasks of some threads took, for the answer to those who find no place."""

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from run_gpt.errors import QueueFull

NEWEST = 1 / 8
"""Share of the newest task in the mean."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pace:
    """Mean time of the latest tasks; `at_once` of them run together. Its methods may be called from any thread."""

    def __init__(self, at_once: int):
        self._at_once = at_once
        self._seconds = 0.0

    def timed(self, task: Callable[_P, _T]) -> Callable[_P, _T]:
        """Return the task, made to count its time."""

        @wraps(task)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            began = time.monotonic()
            try:
                return task(*args, **kwargs)
            finally:
                took = time.monotonic() - began
                self._seconds += (took - self._seconds) * NEWEST if self._seconds else took

        return run

    def full(self, what: str) -> QueueFull:
        """Return the refusal of a task, with the seconds until a place is free; `what` takes all of them."""
        seconds = QueueFull.seconds(self._seconds / self._at_once)
        return QueueFull(f"{what}: try again in {seconds} s", retry_after=seconds)
