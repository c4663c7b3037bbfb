"""Tasks of other threads that the engine's thread runs between two steps."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from run_gpt.errors import Unavailable


class TaskQueue:
    """Queue of tasks. Each ends once: run or refused. Its owner holds the lock for each call but `call`."""

    def __init__(self, changed: threading.Condition):
        """`changed`: the owner's lock, notified when a task waits."""
        self._changed = changed
        self.refusal: str | None = None
        """Reason for which tasks are refused, once the engine ends."""
        self._waiting: list[tuple[Callable[[], None], Future[None]]] = []

    def __bool__(self) -> bool:
        """Return True when a task waits."""
        return bool(self._waiting)

    def call(self, task: Callable[[], None]) -> None:
        """Queue a task and block until it has ended. Raises the task's error, and Unavailable if it is refused."""
        with self._changed:
            if self.refusal is not None:
                raise Unavailable(self.refusal)
            done: Future[None] = Future()
            self._waiting.append((task, done))
            self._changed.notify_all()
        done.result()

    def run(self) -> None:
        """Run all queued tasks."""
        for task, done in self._taken():
            try:
                task()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def refuse(self, reason: str) -> None:
        """Refuse all queued tasks, and those that come later."""
        self.refusal = reason
        for _, done in self._taken():
            done.set_exception(Unavailable(reason))

    def _taken(self) -> list[tuple[Callable[[], None], "Future[None]"]]:
        taken, self._waiting = self._waiting, []
        return taken
