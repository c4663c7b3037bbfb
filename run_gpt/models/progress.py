"""How the long steps of this room report what they do: a callback, so that nothing is printed here."""

from typing import Protocol


class OnProgress(Protocol):
    """Called with the step's description, the bytes done and the bytes in all (None: not known), often per second.

    It may be called from another thread than the one that started the step.
    """

    def __call__(self, step: str, done: int, total: int | None, /) -> None: ...


def no_progress(step: str, done: int, total: int | None, /) -> None:
    """Tell nobody."""
