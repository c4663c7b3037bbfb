"""What other threads want done between two steps, by the thread that steps."""

from collections.abc import Callable
from concurrent.futures import Future


class Errands:
    """A queue of calls. Each ends once: done, or refused. Its owner guards it with a lock, but for the waiting."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], None], Future[None]]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, errand: Callable[[], None]) -> "Future[None]":
        """The future has what the errand raises, or what it was refused with."""
        done: Future[None] = Future()
        self._waiting.append((errand, done))
        return done

    def do(self) -> None:
        """Do all of them."""
        for errand, done in self._taken():
            try:
                errand()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def refuse(self, error: Exception) -> None:
        """Let all of them end with this error."""
        for _, done in self._taken():
            done.set_exception(error)

    def _taken(self) -> list[tuple[Callable[[], None], "Future[None]"]]:
        taken, self._waiting = self._waiting, []
        return taken
