"""Progress reports of this package's long steps: they call a callback, so that nothing is printed here."""

from typing import Protocol


class OnProgress(Protocol):
    """Callback that gets the step's description, the bytes done and the total bytes (None: not known).

    It is called often per second, and may be called from another thread than the one that started the step.
    """

    def __call__(self, step: str, done: int, total: int | None, /) -> None: ...


def no_progress(step: str, done: int, total: int | None, /) -> None:
    """Report nothing."""
