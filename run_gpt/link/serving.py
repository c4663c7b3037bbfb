"""The executor's end of the inner wire: a gRPC service that hands each request to a handler."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

import grpc
import msgspec

from run_gpt.api.pieces import Head, Pending, Piece, Update, Whole
from run_gpt.errors import InternalError, QueueFull, RequestError
from run_gpt.link import frames
from run_gpt.link.frames import VERSION, Answering, Start
from run_gpt.link.outbox import Outbox, end_tasks

log = logging.getLogger(__name__)

FRAME_BYTES = 1024 * 1024
"""Most bytes of log-probabilities or vectors in one frame, about."""


class Reply:
    """The part of the answer to one request that was not sent yet."""

    def __init__(self, stream: int, notify: Callable[["Reply"], None]):
        self.stream = stream
        self._notify = notify
        self._pending = Pending()
        self._end: frames.Done | frames.Failed | None = None

    def put(self, update: Update) -> None:
        """Send more of the answer. Pieces that cannot be sent at once are merged."""
        self._pending.put(update)
        self._notify(self)

    def end(self, error: RequestError | None) -> None:
        """Send the end of the answer."""
        self._end = frames.Done(self.stream) if error is None else frames.Failed(self.stream, _written(error))
        self._notify(self)

    def take(self) -> list[Answering | None]:
        """Return the messages to send now; after None a new frame begins."""
        messages: list[Answering | None] = []
        for update in self._pending.take():
            if isinstance(update, Piece) and not update.logprobs:
                messages.append(frames.Next(self.stream, update))
            elif isinstance(update, Head):
                messages.append(frames.Begun(self.stream, update))
            elif isinstance(update, bytes):
                messages.append(frames.Body(self.stream, update))
            else:
                messages += self._long(update)
        return messages if self._end is None else [*messages, self._end]

    def _long(self, update: Piece | Whole) -> Iterator[Answering | None]:
        """Yield messages for an update with many bytes, in frames of FRAME_BYTES: neither end is held for long."""
        split: Sequence[Piece | Whole] = update.split(FRAME_BYTES)
        for i, part in enumerate(split):
            if i:
                yield None
            if isinstance(part, Piece):
                yield frames.Next(self.stream, part)
            else:
                yield frames.Body(self.stream, part.json, part.parts)


def _written(error: RequestError) -> dict[str, str | None]:
    more = {"retry_after": str(error.retry_after)} if isinstance(error, QueueFull) else {}
    return {**error.to_dict(), **more}


Handle = Callable[[Start, Reply], Awaitable[None]]
"""Function that answers a request: it puts updates into the reply, and returns, or raises a RequestError, at the end.

It is cancelled when the gateway does not wait for the answer any more."""


class LinkServer:
    """Server for any number of gateways. `handle` runs in a task of its own for each request."""

    def __init__(self, handle: Handle):
        self._handle = handle
        self._over = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def handler(self) -> Any:
        """Handler of the gRPC method `frames.METHOD`; its messages are bytes."""
        return grpc.stream_stream_rpc_method_handler(self._connect)

    async def end(self) -> None:
        """Let the requests that run end, send their answers, and end the calls. Later calls end at once."""
        self._over.set()
        if self._calls:
            await asyncio.wait(self._calls)

    async def _connect(self, incoming: AsyncIterator[bytes], context: Any) -> None:
        try:
            frame = await anext(incoming, None)
            if frame is None or self._over.is_set():
                return
            hello = frames.decode_hello(frame)
            await context.write(frames.encode(frames.Welcome(VERSION)))
            if hello.version == VERSION:
                await self._serve(incoming, context)
        except msgspec.DecodeError as error:
            log.error("a gateway sent what is no frame of the inner wire: %s", error)

    async def _serve(self, incoming: AsyncIterator[bytes], context: Any) -> None:
        """Serve a gateway until it disconnects, or this server ends."""
        connection, call = _Connection(self._handle), cast("asyncio.Task[Any]", asyncio.current_task())
        self._calls.add(call)
        reading = asyncio.create_task(connection.read(incoming))
        sending = asyncio.create_task(connection.outbox.send_all(context.write))
        ending = asyncio.create_task(self._end(connection))
        try:
            await asyncio.wait((reading, sending, ending), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            elif ending.done():
                connection.outbox.end()
                await asyncio.wait((sending,))
        finally:
            await end_tasks(reading, sending, ending)
            await connection.close()
            self._calls.discard(call)

    async def _end(self, connection: "_Connection") -> None:
        await self._over.wait()
        await connection.end()


class _Connection:
    """One gateway's call."""

    def __init__(self, handle: Handle):
        self._handle = handle
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._news: dict[int, Reply] = {}
        """Replies that have something to send, by their numbers."""
        self.outbox = Outbox(self._take)

    async def read(self, incoming: AsyncIterator[bytes]) -> None:
        """Act on incoming messages until the gateway disconnects. Raises msgspec.DecodeError."""
        async for frame in incoming:
            for message in frames.decode_asking(frame):
                if isinstance(message, Start):
                    self._start(message)
                elif message.stream in self._tasks:
                    self._tasks[message.stream].cancel()

    async def end(self) -> None:
        """Wait until all requests have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def close(self) -> None:
        """Cancel all requests: their answers have no reader any more."""
        await end_tasks(*self._tasks.values())

    def _start(self, start: Start) -> None:
        reply = Reply(start.stream, self._notify)
        task = self._tasks[start.stream] = asyncio.create_task(self._run(start, reply))
        task.add_done_callback(lambda _: self._tasks.pop(start.stream))

    async def _run(self, start: Start, reply: Reply) -> None:
        error: RequestError | None = None
        try:
            await self._handle(start, reply)
        except RequestError as failure:
            error = failure
        except (Exception, asyncio.CancelledError) as failure:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise  # the answer has no reader
            log.exception("the request %s failed", start.request_id)
            error = InternalError(f"the request failed: {type(failure).__name__}: {failure}")
        reply.end(error)

    def _notify(self, reply: Reply) -> None:
        self._news[reply.stream] = reply
        self.outbox.notify()

    def _take(self) -> list[Answering | None]:
        replies, self._news = self._news, {}
        return [message for reply in replies.values() for message in reply.take()]
