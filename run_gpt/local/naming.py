"""Log-probabilities with the texts of their tokens, which are made in a thread: one answer may have 40,000 of them."""

import asyncio
import logging

from run_gpt.api.pieces import Parts
from run_gpt.engine.events import EventStream
from run_gpt.engine.request import TokenEvent
from run_gpt.errors import InternalError, RequestError
from run_gpt.local.answers import PieceOutlet, PieceWriter
from run_gpt.local.workers import Workers

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Most places of a text that one task of a thread names, and that one part has. Between two tasks a request that was
cancelled stops."""


async def named(writer: PieceWriter, event: TokenEvent, workers: Workers) -> Parts:
    """Return an event's tokens with their log-probabilities, for `PieceWriter.piece`."""
    listed = writer.listed(event)
    parts = [
        await workers.run(writer.named, listed[start : start + AT_ONCE]) for start in range(0, len(listed), AT_ONCE)
    ]
    return [part for part in parts if part]


class NamingOutlet(EventStream):
    """Outlet of a stream with log-probabilities. Events that come while others are named are merged."""

    def __init__(self, outlet: PieceOutlet, workers: Workers):
        super().__init__()
        self._outlet, self._workers = outlet, workers
        self._task = asyncio.create_task(self._pass_on())

    def close(self) -> None:
        """Stop: the answer has no reader any more, or all of it."""
        self._task.cancel()

    async def _pass_on(self) -> None:
        error: RequestError | None = None
        try:
            async for event in self:
                self._outlet.receive(event, await named(self._outlet.writer, event, self._workers))
        except RequestError as failure:
            error = failure
        except Exception as failure:
            log.exception("the log-probabilities of an answer failed")
            error = InternalError(f"the log-probabilities failed: {type(failure).__name__}: {failure}")
        self._outlet.ended(error)
