"""Reading of the gRPC port's messages within bounds: their time, their size, and the number of calls that wait."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from run_gpt.errors import DeadlineExceeded, InvalidRequest, QueueFull, RequestError, RequestTooLarge

COMPRESSED = (b"\x1f", b"\x78")
"""First bytes of gzip and zlib. No message of ours begins with them: they would be the tag of a group, or of field 15.
gRPC itself is not to inflate messages, since it has no bound for what comes out."""
OVERHEAD = 4096
"""Bytes that are counted for a message beside its own, for its call's headers."""


@dataclass(frozen=True)
class Bound:
    """Bounds of the messages of some calls."""

    most_bytes: int
    seconds: float
    """Time in which a call's first message must come."""
    most_waiting: int
    """Most calls that wait for a message; one more ends the one that has waited longest."""


@dataclass(eq=False)
class Read:
    """A call's wait for its next message."""

    peer: str
    bound: Bound
    timeout: asyncio.Timeout
    error: RequestError | None = field(default=None, init=False)

    def fail(self, error: RequestError) -> None:
        """End the wait with this error."""
        if self.error is None:
            self.error = error
            self.timeout.reschedule(0)


class Reads:
    """All waits for messages on one port."""

    def __init__(self) -> None:
        self.waiting: dict[Bound, dict[Read, None]] = {}
        """Waits by their bound, the longest first."""
        self.taken: Counter[str] = Counter()
        """Bytes of the messages that were read, with their OVERHEAD, by the connection's peer."""

        self.writing = 0
        """Number of answers that are being written; a drain ends before those of one message are."""
        self.begun = asyncio.Event()
        """Set when a wait begins."""

    def of(self, peer: str) -> list[Read]:
        """Return the waits for messages of one connection."""
        return [read for reads in self.waiting.values() for read in reads if read.peer == peer]

    @property
    def peers(self) -> set[str]:
        """Connections that a message is awaited from."""
        return {read.peer for reads in self.waiting.values() for read in reads}

    async def next(self, messages: AsyncIterator[bytes], peer: str, bound: Bound, *, first: bool) -> bytes | None:
        """Return the next message of a call, None at their end.

        Raises DeadlineExceeded, RequestTooLarge, InvalidRequest for a compressed one, QueueFull if too many wait.
        """
        seconds = bound.seconds if first else None
        try:
            async with asyncio.timeout(seconds) as timeout:
                read = Read(peer, bound, timeout)
                with self._entered(read):
                    message: bytes | None = await anext(messages, None)
        except TimeoutError:
            raise read.error or DeadlineExceeded(f"no message came in {seconds:g} seconds") from None
        if message is not None:
            self.taken[peer] += len(message) + OVERHEAD
            check(message, bound.most_bytes)
        return message

    @contextmanager
    def _entered(self, read: Read) -> Iterator[None]:
        reads = self.waiting.setdefault(read.bound, {})
        reads[read] = None
        self.begun.set()
        if len(reads) > read.bound.most_waiting:
            oldest = next(iter(reads))
            del reads[oldest]
            oldest.fail(QueueFull(f"more than {read.bound.most_waiting} calls wait for a message: send it at once"))
        try:
            yield
        finally:
            reads.pop(read, None)


def check(message: bytes, most_bytes: int) -> None:
    """Raise RequestTooLarge for a message of more bytes, and InvalidRequest for a compressed one."""
    if len(message) > most_bytes:
        raise RequestTooLarge(f"the message has {len(message)} bytes, the limit is {most_bytes} bytes")
    if message.startswith(COMPRESSED):
        raise InvalidRequest("the message is compressed: send it without compression")
