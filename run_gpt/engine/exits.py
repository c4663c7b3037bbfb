"""End of the engines that a program did not close, before Python ends.

Python stops a daemon thread where it next asks for the lock of the interpreter. In the midst of torch's C++ that aborts
the process. So the threads that call torch end first.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Ending(Protocol):
    """Engine, as this module knows it."""

    def shutdown(self) -> None:
        """End its threads. Blocks for one step at most; a second call does nothing."""


_running: "weakref.WeakSet[Ending]" = weakref.WeakSet()
_working = threading.Lock()
_over = threading.Event()


def end_at_exit(engine: Ending) -> None:
    """Shut an engine down when the program ends, if it still runs."""
    _running.add(engine)


@contextmanager
def before_exit() -> Iterator[bool]:
    """Keep the program from ending within this block of a daemon thread. Yields False if it ends already."""
    with _working:
        yield not _over.is_set()


def _end_all() -> None:
    with _working:
        _over.set()
    for engine in list(_running):
        try:
            engine.shutdown()
        except Exception:  # the others must still end
            log.exception("an engine did not end")


# Before threads of executors are waited for, of which one may run a beam search, and long before atexit's functions.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
