"""Owns what a series of looks at a server knows: the last view, and what went wrong since."""

import time
from dataclasses import dataclass
from typing import Protocol

from run_gpt.errors import SetupError
from run_gpt.top.reading import Reading
from run_gpt.top.view import View, view_of

REMEMBERED = 30.0
"""Seconds for which a restart is told."""


class Readable(Protocol):
    """What a watch looks at."""

    def read(self) -> Reading:
        """Raises SetupError if it does not answer."""


@dataclass(frozen=True)
class Seen:
    """What there is to show."""

    view: View | None
    """The last one that there was; None until two readings are there."""
    notes: list[str]
    """What a user should know of it, a line each."""


class Watch:
    """Looks at a server again and again. A server that is gone or started again is a note, not an error."""

    def __init__(self, source: Readable):
        self._source = source
        self._last: Reading | None = None
        self._view: View | None = None
        self._gone_since: float | None = None
        self._restarts: dict[str, float] = {}

    def start(self) -> None:
        """The first look. Raises SetupError: who has just typed a wrong URL or key should read so."""
        self._last = self._source.read()

    def look(self) -> Seen:
        """One more look."""
        now = time.monotonic()
        try:
            reading = self._source.read()
        except SetupError as error:
            self._gone_since = self._gone_since if self._gone_since is not None else now
            return Seen(self._view, [f"no answer for {now - self._gone_since:.0f} s: {error.message}"])
        self._gone_since = None
        if self._last is not None:
            self._view = view_of(self._last, reading)
            self._restarts |= dict.fromkeys(self._view.restarted, now)
        self._last = reading
        told = [name for name, at in self._restarts.items() if now - at < REMEMBERED]
        return Seen(self._view, [f"started again: {', '.join(sorted(told))}"] if told else [])
