"""Turns of parallel test workers: tests that measure time or memory run alone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".pytest_cache"


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Let a test run: beside those of other workers, or `alone`, once theirs have ended and before they go on."""
    mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with _opened("queue") as queue, _opened("running") as running:
        fcntl.flock(queue, mode)  # while a test waits to be alone, no further test starts
        fcntl.flock(running, mode)
        if not alone:
            fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """Open a lock file; release its lock, and close it."""
    FOLDER.mkdir(exist_ok=True)
    file = os.open(FOLDER / f"turns-{name}", os.O_CREAT | os.O_RDWR)
    try:
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have the file, too
        os.close(file)
