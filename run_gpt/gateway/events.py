"""The events of a stream, in the form that each port needs: bodies for gRPC, server-sent events for HTTP."""

from collections.abc import AsyncIterator
from typing import Protocol

from run_gpt.api.answers import Body
from run_gpt.api.pieces import Head, Piece
from run_gpt.api.sse import body_event
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.gateway.streams import Streams


class Events(Protocol):
    """The events of one answer. Both calls raise the RequestError that the answer ends with."""

    async def bodies(self) -> list[Body]:
        """Return the next events; nothing at the end."""

    async def sse(self) -> bytes:
        """Return the next events as server-sent events; nothing at the end."""


class TextEvents:
    """Events of a text (see Events)."""

    def __init__(self, streams: Streams, writer: StreamWriter):
        self._streams, self._writer = streams, writer
        self._over = False

    async def bodies(self) -> list[Body]:
        """See Events."""
        while not self._over:
            pieces = await self._pieces()
            if self._over:
                return self._writer.end()
            if bodies := [body for which, piece in pieces for body in self._writer.bodies(which, piece)]:
                return bodies
        return []

    async def sse(self) -> bytes:
        """See Events."""
        while not self._over:
            pieces = await self._pieces()
            if self._over:
                return b"".join(map(body_event, self._writer.end()))
            if written := b"".join([self._writer.sse(which, piece) for which, piece in pieces]):
                return written
        return b""

    async def _pieces(self) -> list[tuple[int, Piece]]:
        """Return the next pieces; `_over` is true when there are no more."""
        updates = await self._streams.read()
        self._over = not updates
        pieces = []
        for which, one in updates:
            if isinstance(one, Head):
                self._writer.begin(which, one)
            else:
                pieces.append((which, one))
        return pieces


class ModelEvents:
    """Events of the load of a model (see Events)."""

    def __init__(self, states: AsyncIterator[Body]):
        self._states = states

    async def bodies(self) -> list[Body]:
        """See Events."""
        state = await anext(self._states, None)
        return [] if state is None else [state]

    async def sse(self) -> bytes:
        """See Events."""
        return b"".join([body_event(state) for state in await self.bodies()])
