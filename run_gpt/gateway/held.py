"""`HeldBytes`: the bound on the bodies of all HTTP requests in progress together."""

from collections.abc import Iterator
from contextlib import contextmanager

from run_gpt.errors import QueueFull

BODIES = 64
"""Largest bodies that may be held at once."""
SMALL_BYTES = 64 * 1024
"""Most bytes of a body that does not count: such bodies are bounded by the number of connections alone."""
LARGE_BYTES = 1024 * 1024
"""Size from which on a body gets no part of the last quarter, which is for smaller ones."""
RETRY_SECONDS = 2


class HeldBytes:
    """Bytes of the bodies of requests, from their arrival to the end of their answers: at most `limit`."""

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """Yield the lease of one request; leaving the block gives its bytes back."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.size


class Lease:
    """The bytes of one request's body."""

    def __init__(self, all_of_them: HeldBytes):
        self.size = 0
        """Bytes that count."""
        self._all = all_of_them

    def hold(self, size: int) -> None:
        """Hold `size` bytes in all. Raises QueueFull if there is no room for them, and keeps what it held."""
        counted = size if size > SMALL_BYTES else 0
        limit = self._all.limit if size < LARGE_BYTES else self._all.limit * 3 // 4
        if counted > self.size and self._all.held - self.size + counted > limit:
            raise QueueFull(
                f"the bodies of requests in progress have {self._all.held} bytes, {limit} are the limit for one of "
                f"{size} bytes: try again in {RETRY_SECONDS} s",
                retry_after=RETRY_SECONDS,
            )
        self._all.held += counted - self.size
        self.size = counted
