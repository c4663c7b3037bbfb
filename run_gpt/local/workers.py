"""Threads for work on requests that would hold up an event loop: short tasks, and long ones beside them."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar, TypeVarTuple

from run_gpt.process.pace import Pace

SHORT_THREADS = 4
LONG_THREADS = 2
LONG_WAITING = 32
"""Most long tasks that wait or run."""

_A = TypeVarTuple("_A")
_T = TypeVar("_T")


class Workers:
    """Threads of one model. Short tasks never wait for long ones."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(SHORT_THREADS, thread_name_prefix="rungpt-short")
        self._long = ThreadPoolExecutor(LONG_THREADS, thread_name_prefix="rungpt-long")
        self._room = threading.BoundedSemaphore(LONG_WAITING)
        self._pace = Pace(LONG_THREADS)

    async def run(self, task: Callable[[*_A], _T], *arguments: *_A, long: bool = False) -> _T:
        """Return the task's result. A task that is cancelled while it waits is not run.

        Raises QueueFull if LONG_WAITING long tasks wait or run.
        """
        if long and not self._room.acquire(blocking=False):
            raise self._pace.full(f"{LONG_WAITING} long prompts wait to be tokenised")
        context = copy_context()
        work = self._pace.timed(task) if long else task
        future = (self._long if long else self._short).submit(lambda: context.run(work, *arguments))
        if long:
            future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads once their present tasks have ended; those that wait are not run."""
        for threads in (self._short, self._long):
            threads.shutdown(wait=False, cancel_futures=True)
