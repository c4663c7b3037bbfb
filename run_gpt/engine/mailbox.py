"""The way of a request's events from the engine's thread to a consumer's event loop."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator

from run_gpt.engine.request import TokenEvent
from run_gpt.errors import DeadlineExceeded, RequestError


class _Waker:
    """Sets asyncio events of one loop from another thread: all that gather until the loop looks, by one call.

    A call writes to the loop's socket, which for the rows of a large batch takes longer than the rest of a step's end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = weakref.ref(loop)  # the loop is the key under which this lies
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Event] = []

    def set(self, event: asyncio.Event) -> None:
        """Set it soon."""
        with self._lock:
            self._waiting.append(event)
            called = len(self._waiting) > 1
        if not called:
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._set_all)
            except RuntimeError:  # the consumers' loop is closed: nobody is left to read
                self._set_all()

    def _set_all(self) -> None:
        with self._lock:
            events, self._waiting = self._waiting, []
        for event in events:
            event.set()


_wakers: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waker]" = weakref.WeakKeyDictionary()


class Mailbox:
    """Carries the events of one request from the engine's thread to a consumer's event loop.

    What arrives while the consumer is busy is merged into one event for each sequence, so that a consumer that is
    slower than the engine gets fewer and larger events, not a longer queue.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._waker = _wakers.setdefault(loop, _Waker(loop))
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._events: dict[int, TokenEvent] = {}
        self._ended = False
        self._error: RequestError | None = None

    def put(self, event: TokenEvent) -> None:
        """Deliver an event."""
        with self._lock:
            earlier = self._events.get(event.index)
            self._events[event.index] = earlier + event if earlier else event
        self._waker.set(self._arrived)

    def end(self, error: RequestError | None = None) -> None:
        """The last delivery: no more events, or an error after them."""
        with self._lock:
            self._ended, self._error = True, error
        self._waker.set(self._arrived)

    async def events(self, deadline: float | None) -> AsyncIterator[TokenEvent]:
        """What arrives, until the end. Raises the error it ended with, or DeadlineExceeded."""
        while True:
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                raise DeadlineExceeded("the request's time was up before its answer was complete") from None
            self._arrived.clear()
            with self._lock:
                events, self._events = list(self._events.values()), {}
                ended, error = self._ended, self._error
            for event in events:
                yield event
            if ended:
                if error is not None:
                    raise error
                return
