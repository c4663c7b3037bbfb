"""`Streams`: the answers to the native requests of one request, read together as they come."""

import asyncio
import time
from collections.abc import Callable, Sequence

from run_gpt.api.endpoints import endpoint_of
from run_gpt.api.pieces import Head, Piece
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import Request
from run_gpt.api.together import Turns
from run_gpt.errors import InternalError, RequestError
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.link.calling import Exchange
from run_gpt.link.outbox import end_tasks

SEQUENCES_AT_ONCE = 32
"""Number of sequences of one request that run together: more would fill the queue for others."""


class Streams:
    """The streams of `natives`, from replicas of `pool`, until `deadline` (on time.monotonic's clock).

    `new_id` makes the id of each. Close this when it is not read any more.
    """

    def __init__(self, pool: ReplicaPool, natives: Sequence[Request], deadline: float, new_id: Callable[[], str]):
        self._pool, self._natives, self._deadline, self._new_id = pool, natives, deadline, new_id
        self._arrived = asyncio.Event()
        self._exchanges: dict[int, Exchange] = {}
        self._unfinished = [native.sequences for native in natives]
        self._running = len(natives)
        self._error: Exception | None = None
        turns = turns_of(natives)
        self._tasks = [asyncio.create_task(self._run(which, turns)) for which in range(len(natives))]

    async def read(self) -> list[tuple[int, Head | Piece]]:
        """Return the new items, each with the number of its native request; nothing when all have ended.

        Items that came between two reads are merged into one piece for each sequence. Raises the first RequestError,
        even if the other native requests go on.
        """
        updates: list[tuple[int, Head | Piece]] = []
        while self._error is None and not (updates := self._take()) and self._running:
            self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None and not updates:
            raise self._error
        return updates

    def unread_tokens(self) -> int:
        """Remove and count the tokens that came and were not read."""
        unread = [one for exchange in self._exchanges.values() for one in exchange.take()]
        return sum(one.tokens for one in unread if isinstance(one, Piece))

    async def close(self) -> None:
        """End the streams that have not ended."""
        await end_tasks(*self._tasks)

    def _take(self) -> list[tuple[int, Head | Piece]]:
        updates: list[tuple[int, Head | Piece]] = []
        for which, exchange in list(self._exchanges.items()):
            for one in exchange.take():
                if isinstance(one, Piece):
                    self._unfinished[which] -= one.finish is not None
                elif not isinstance(one, Head):
                    continue  # no part of a text: if its end is missing, the answer is an error
                updates.append((which, one))
            if exchange.over:
                del self._exchanges[which]
                self._end(_failure(exchange, self._unfinished[which]))
        return updates

    def _end(self, error: Exception | None) -> None:
        self._running -= 1
        self._error = self._error or error

    async def _run(self, which: int, turns: Turns) -> None:
        native, new_id = self._natives[which], self._new_id()
        endpoint = endpoint_of(native, stream=True)

        async def begin() -> Exchange:
            left = self._deadline - time.monotonic()
            return await self._pool.begin(native, new_id, left, self._arrived, endpoint)

        try:
            async with turns.turn(begin) as exchange:
                self._exchanges[which] = exchange
                self._arrived.set()
                try:
                    await asyncio.wait((exchange.ended,))
                finally:
                    exchange.close()
        except Exception as error:  # raised again by `read`
            self._end(error)
            self._arrived.set()


def _failure(exchange: Exchange, unfinished: int) -> RequestError | None:
    """Return the error of a stream that has ended; none if all of its sequences had ended before."""
    if unfinished <= 0:
        return None
    return exchange.error or InternalError("the model server ended the answer before it was complete")


def turns_of(natives: Sequence[AnyRequest]) -> Turns:
    """Return the turns of the natives of one request, which limit how many of them run together."""
    first = natives[0]
    sequences = first.best_of or first.sequences if isinstance(first, Request) else 1
    return Turns(max(1, SEQUENCES_AT_ONCE // sequences))
