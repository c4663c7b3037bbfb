"""Owns the delay before a process that died is started again."""


class Backoff:
    """Delays that double from `initial` to `maximum` seconds, and start again after `healthy_after` seconds of life."""

    def __init__(self, initial: float = 0.5, maximum: float = 30.0, healthy_after: float = 60.0):
        self.initial = initial
        self.maximum = maximum
        self.healthy_after = healthy_after
        self._next = initial

    def next_delay(self, served_seconds: float) -> float:
        """Return the seconds before the restart of a process that died after serving that long (0: it never served)."""
        if served_seconds >= self.healthy_after:
            self._next = self.initial
        delay = self._next
        self._next = min(delay * 2, self.maximum)
        return delay
