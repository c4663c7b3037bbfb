"""Watchdog of event loops: it notes each callback that takes too much processor time, for tests.

Processor time, not the clock: a busy machine makes callbacks late, but not long. Time of the garbage collector does not
count, since it depends on all that the process has done before.
"""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 0.020
"""Most time of a callback. A callback that takes longer makes every other stream of its process wait."""
REFERENCE_SECONDS = 0.003
"""Time of `_reference` on the machine for which LIMIT_SECONDS was chosen."""
SITECUSTOMIZE = """
import sys
if {role!r} in sys.orig_argv:
    sys.path.append({tests!r})
    import loop_watchdog
    from pathlib import Path
    loop_watchdog.install(Path({journal!r}))
"""
"""Text of a sitecustomize.py, which Python runs at its start."""


class Watchdog:
    """The notes of one or more processes in a file: a line for each slow callback, its seconds and its name."""

    def __init__(self, journal: Path):
        self.journal = journal
        self.limit = LIMIT_SECONDS * max(1.0, _reference() / REFERENCE_SECONDS)
        """Limit on this machine, in seconds."""
        self._seen = 0

    def env(self, role: str) -> dict[str, str]:
        """Return variables that put processes of a role under watch: those with this word in their command.

        They take asyncio's own loop, since uvloop's callbacks cannot be watched.
        """
        folder = self.journal.parent / "watchdog"
        folder.mkdir(exist_ok=True)
        text = SITECUSTOMIZE.format(role=role, tests=str(Path(__file__).parent), journal=str(self.journal))
        (folder / "sitecustomize.py").write_text(text)
        return {"PYTHONPATH": str(folder), "JINA_DISABLE_UVLOOP": "1"}

    def news(self) -> list[str]:
        """Return the notes since the last call that are over the limit of this machine."""
        text = self.journal.read_text() if self.journal.exists() else ""
        new, self._seen = text[self._seen :], len(text)
        return [line for line in new.splitlines() if float(line.split()[0]) > self.limit]


def install(journal: Path) -> None:
    """Watch all event loops of this process from now on."""
    run, collecting = asyncio.Handle._run, _CollectorTime()

    def watched(self: asyncio.Handle) -> None:
        callback: Any = self._callback
        start, collected = time.thread_time(), collecting.seconds
        run(self)
        took = time.thread_time() - start - (collecting.seconds - collected)
        if took > LIMIT_SECONDS:
            name = repr(getattr(callback, "__self__", callback))[:300].replace("\n", " ")
            with journal.open("a") as file:
                file.write(f"{took:.3f} {name}\n")

    asyncio.Handle._run = watched  # type: ignore[method-assign]


@contextmanager
def installed(journal: Path) -> Iterator[Watchdog]:
    """Watch all event loops of this process until the block ends."""
    run = asyncio.Handle._run
    install(journal)
    try:
        yield Watchdog(journal)
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


class _CollectorTime:
    """Processor time of the garbage collector in this process."""

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._start = time.thread_time()
        else:
            self.seconds += time.thread_time() - self._start


def _reference() -> float:
    """Return the seconds of some work of fixed size, the best of five."""
    text, times = json.dumps([{"a": [i, str(i)]} for i in range(5000)]), []
    for _ in range(5):
        start = time.thread_time()
        json.loads(text)
        times.append(time.thread_time() - start)
    return min(times)
