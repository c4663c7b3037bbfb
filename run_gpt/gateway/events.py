"""The events of a stream, in the form that each port needs: bodies for gRPC, server-sent events for HTTP."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Protocol

from run_gpt.api.answers import Body
from run_gpt.api.pieces import Head, Piece
from run_gpt.api.sse import body_event
from run_gpt.gateway.long_answers import LONG_ANSWER, in_thread
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.gateway.streams import Streams

MOST_BYTES = 24 * 1024
"""Most bytes of log-probabilities that are written at once: some 20 tokens with 20 alternatives each."""


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
        self._waiting: deque[tuple[int, Piece]] = deque()
        """Pieces that were read, and not written yet."""
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
                return self._writer.written(self._writer.end())
            long = self._writer.unread_bytes > LONG_ANSWER and any(piece.finish for _, piece in pieces)
            if written := await in_thread(partial(self._write, pieces)) if long else self._write(pieces):
                return written
        return b""

    def _write(self, pieces: list[tuple[int, Piece]]) -> bytes:
        return b"".join([self._writer.sse(which, piece) for which, piece in pieces])

    async def _pieces(self) -> list[tuple[int, Piece]]:
        """Return the next pieces, not too many at once; `_over` is true when there are no more."""
        if self._waiting:
            await asyncio.sleep(0)  # others go on in between
        else:
            updates = await self._streams.read()
            self._over = not updates
            pieces, long = [], False
            for which, one in updates:
                if isinstance(one, Head):
                    self._writer.begin(which, one)
                else:
                    pieces.append((which, one))
                    long = long or bool(one.logprobs)
            if not long:
                return pieces
            self._waiting += ((which, part) for which, piece in pieces for part in piece.split(MOST_BYTES))
        pieces, size = [], 0
        while self._waiting and size < MOST_BYTES:
            pieces.append(self._waiting.popleft())
            size += sum(map(len, pieces[-1][1].logprobs or ()))
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
