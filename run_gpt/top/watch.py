"""Owns the state between repeated readings of a server: the last view, and the errors and restarts since."""

import time
from dataclasses import dataclass
from typing import Protocol

from run_gpt.errors import SetupError
from run_gpt.top.reading import Reading
from run_gpt.top.view import View, view_of

REMEMBERED = 30.0
"""Seconds for which a restart is shown."""


class Readable(Protocol):
    """Source of a watch's readings."""

    def read(self) -> Reading:
        """Read the server once. Raises SetupError if it does not answer."""


@dataclass(frozen=True)
class Snapshot:
    """View and notes to show after a reading."""

    view: View | None
    """Last view; None until there have been two readings."""
    notes: list[str]
    """Notes for the user, one line each."""


class Watch:
    """Repeated readings of a server. A server that stops answering or restarts leads to a note, not an error."""

    def __init__(self, source: Readable):
        self._source = source
        self._last: Reading | None = None
        self._view: View | None = None
        self._silent_since: float | None = None
        self._restarts: dict[str, float] = {}

    def start(self) -> None:
        """Read the server for the first time. Raises SetupError, so that the user sees a wrong URL or key at once."""
        self._last = self._source.read()

    def poll(self) -> Snapshot:
        """Read the server once more and return what to show."""
        now = time.monotonic()
        try:
            reading = self._source.read()
        except SetupError as error:
            self._silent_since = self._silent_since if self._silent_since is not None else now
            return Snapshot(self._view, [f"no answer for {now - self._silent_since:.0f} s: {error.message}"])
        self._silent_since = None
        if self._last is not None:
            self._view = view_of(self._last, reading)
            self._restarts |= dict.fromkeys(self._view.restarted, now)
        self._last = reading
        restarted = [name for name, at in self._restarts.items() if now - at < REMEMBERED]
        return Snapshot(self._view, [f"started again: {', '.join(sorted(restarted))}"] if restarted else [])
