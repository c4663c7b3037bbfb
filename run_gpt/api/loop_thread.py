"""An event loop in its own thread, for sync calls of async code. It works inside a running loop (a notebook), too."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from run_gpt.errors import Unavailable

T = TypeVar("T")
Future = concurrent.futures.Future

_JOIN_SECONDS = 5.0


class LoopThread:
    """Thread that runs coroutines until it is stopped. It does not keep the interpreter alive."""

    def __init__(self, name: str):
        self._lock = threading.RLock()  # reentrant: `stop` may be called by the garbage collector, anywhere
        self._is_stopped = False
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._loop, self._stopped = self._started.result()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start the coroutine; cancelling the future cancels it. Raises Unavailable after `stop`."""
        with self._lock:  # a coroutine submitted before `stop` is always started, then cancelled
            if not self._is_stopped:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise Unavailable("this model is closed")

    def stop(self) -> None:
        """Cancel running coroutines, close open generators, end the thread. May be called from anywhere, and twice."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        stopped = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()


def result(future: Future[T]) -> T:
    """Return the result. An interrupt (Ctrl-C) cancels the coroutine. Raises Unavailable if `stop` ended it."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise Unavailable("this model was closed before the answer was complete") from None
    except BaseException:
        future.cancel()
        raise
