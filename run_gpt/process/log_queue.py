"""Bounded queue before a log: adding a line takes no time and never fails, however the log fares."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

RETRY_SECONDS = 1.0
"""Pause before an item that could not be written is tried again."""


class LogQueue(Generic[Item]):
    """Queue of a log's lines, which a thread of its own passes to `take` in order.

    `take` may block, and may fail: after an OSError (a full disk, a closed terminal) the same item is tried again each
    second, after any other error it is dropped. `most`: characters that may wait. Items that do not fit are dropped and
    counted; `lost(lines)` makes the item that reports them, once there is room again.
    """

    def __init__(self, take: Callable[[Item], None], lost: Callable[[int], Item], most: int = 1024 * 1024):
        self._take, self._lost, self._most = take, lost, most
        self._items: deque[tuple[Item, int, int]] = deque()
        self._size, self._unreported, self._closing = 0, 0, False
        self._changed = threading.Condition()  # its lock can be taken twice: a signal handler may log, too
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Number of lines that were dropped."""

    def put(self, item: Item, size: int, lines: int = 1) -> None:
        """Add an item of `size` characters and `lines` lines, or drop it if it does not fit."""
        with self._changed:
            if self._size and self._size + size > self._most:
                self._drop(lines)
                return
            if self._unreported:
                self._add(self._lost(self._unreported), 0, self._unreported)
                self._unreported = 0
            self._add(item, size, lines)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="rungpt-log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until half of the queue is free; return False if it is not within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._size <= self._most // 2, seconds)

    def finish(self, seconds: float) -> bool:
        """Wait until every item is written; return False if they are not within `seconds`."""
        until = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(lambda: not self._items, max(0.0, until - time.monotonic()))

    def close(self, seconds: float) -> None:
        """End the thread once every item is written; leave the rest after `seconds`. Later items start a new one."""
        self.finish(seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _add(self, item: Item, size: int, lines: int) -> None:
        self._items.append((item, size, lines))
        self._size += size
        self._closing = False

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closing)
                if not self._items:
                    self._thread = None
                    return
                item, size, lines = self._items[0]
            written = self._written(item)
            with self._changed:
                if written is None:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                    if not self._closing:
                        continue
                if not written:
                    self._drop(lines)
                self._items.popleft()
                self._size -= size
                self._changed.notify_all()

    def _written(self, item: Item) -> bool | None:
        """Pass an item on; return None if it failed and may be tried again, False if it cannot be written."""
        try:
            self._take(item)
        except OSError:
            return None
        except Exception:  # no error may end the thread, and there is no log to report one in
            return False
        return True
