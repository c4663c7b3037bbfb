"""Sync calls of an object whose calls are async: they run on an event loop in a thread of its own."""

import asyncio
import queue
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, Self, TypeVar, cast

from run_gpt.api.answers import AnyAnswer
from run_gpt.api.loop_thread import Future, LoopThread, result
from run_gpt.errors import Unavailable

T = TypeVar("T")

_creation = threading.Lock()


class SyncCalls(ABC):
    """Base of a model: runs its async calls for sync callers, until it is closed."""

    _thread: LoopThread | None = None
    _closed = False

    @abstractmethod
    async def aclose(self) -> None:
        """Close the model's engine or its connections."""

    def close(self) -> None:
        """Close the model's engine or its connections, and end its thread. Running calls end with an error."""
        if not self._closed:
            result(self._submit(self.aclose()))
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
        await asyncio.to_thread(self._stop)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed_error()

    def _stop(self) -> None:
        with _creation:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop of the sync calls. Its thread ends with the model or with the process."""
        with _creation:
            if self._thread is None and not self._closed:
                self._thread = LoopThread("rungpt-calls")
                weakref.finalize(self, self._thread.stop)
            thread = self._thread
        if thread is None:
            coroutine.close()
            raise _closed_error()
        return thread.submit(coroutine)

    def _iterate(self, events: AsyncIterator[AnyAnswer]) -> Iterator[AnyAnswer]:
        """Yield the events, sync. One task of the loop reads them all, since a generator must not change its task."""
        arrived: queue.SimpleQueue[AnyAnswer | Future[None]] = queue.SimpleQueue()

        async def read() -> None:
            async with aclosing(cast("Any", events)):
                async for event in events:
                    arrived.put(event)

        reading = self._submit(read())
        reading.add_done_callback(arrived.put)
        try:
            while (item := arrived.get()) is not reading:
                yield cast("AnyAnswer", item)
            result(reading)
        finally:
            reading.cancel()


def _closed_error() -> Unavailable:
    return Unavailable("this model is closed")
