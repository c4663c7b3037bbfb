"""Calls from other threads that the engine's thread makes between two steps."""

from collections.abc import Callable
from concurrent.futures import Future


class Errands:
    """Queue of calls. Each ends once: done or refused. Its owner holds a lock for each use, but not while it waits."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], None], Future[None]]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, errand: Callable[[], None]) -> "Future[None]":
        """Queue a call. The returned future gets the error that the call raises, or that it was refused with."""
        done: Future[None] = Future()
        self._waiting.append((errand, done))
        return done

    def do(self) -> None:
        """Make all queued calls."""
        for errand, done in self._taken():
            try:
                errand()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def refuse(self, error: Exception) -> None:
        """End all queued calls with this error."""
        for _, done in self._taken():
            done.set_exception(error)

    def _taken(self) -> list[tuple[Callable[[], None], "Future[None]"]]:
        taken, self._waiting = self._waiting, []
        return taken
