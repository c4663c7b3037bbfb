"""Sinks: receivers of the pieces of an answer, for one reader or for a function."""

import asyncio
from collections.abc import AsyncIterator, Callable

from run_gpt.api.answers import ChatEvent, GenerateAnswer
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import Head, Pending, Piece, Update
from run_gpt.api.schema import Request
from run_gpt.errors import RequestError
from run_gpt.local.answers import settle


class PassingSink:
    """Sink that passes everything on to `put`, except the end, which is in `ended`."""

    def __init__(self, put: Callable[[Head | Piece], None]):
        self.put = put
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: RequestError | None) -> None:
        """See Sink."""
        settle(self.ended, error)


class WaitingSink:
    """Sink with one reader, which takes the updates when it is ready."""

    def __init__(self) -> None:
        self._pending = Pending()
        self._arrived = asyncio.Event()
        self._over = False
        self._error: RequestError | None = None

    def put(self, update: Head | Piece) -> None:
        """See Sink."""
        self._pending.put(update)
        self._arrived.set()

    def end(self, error: RequestError | None) -> None:
        """See Sink."""
        self._over, self._error = True, error
        self._arrived.set()

    async def take(self) -> list[Update]:
        """Wait for updates and return all since the last call; nothing at the end.

        Raises the error that the request ended with, after everything else.
        """
        while not (self._pending or self._over):
            self._arrived.clear()
            await self._arrived.wait()
        if not self._pending and self._error is not None:
            raise self._error
        return self._pending.take()


async def native_events(request: Request, sink: WaitingSink) -> AsyncIterator[GenerateAnswer | ChatEvent]:
    """Yield the API events of everything that comes into `sink`. Raises the errors of its `take`."""
    stream: NativeStream | None = None
    while updates := await sink.take():
        for one in updates:
            if isinstance(one, Head):
                stream = NativeStream(request, one)
            elif isinstance(one, Piece) and stream is not None:
                yield stream.event(one)
