"""`EventStream`: a stream of server-sent events as an HTTP response, written to the ASGI server directly."""

import asyncio
import logging

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from run_gpt.api.endpoints import Endpoint
from run_gpt.api.fields import ignored_header
from run_gpt.api.request import AnyRequest
from run_gpt.api.sse import StreamForm, data_event
from run_gpt.errors import InternalError, RequestError
from run_gpt.gateway.connection import COMMENT as CONNECTION_COMMENT
from run_gpt.gateway.long_answers import SLICE_BYTES, send_slices
from run_gpt.gateway.record import note_error
from run_gpt.gateway.service import Service

log = logging.getLogger(__name__)

IDLE_SECONDS = 15.0
"""Seconds without an event after which a stream sends a comment: proxies close idle connections."""
HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """Raised when the client has closed its connection and so does not wait for the answer."""


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Response that answers `request` event by event.

    The status is 200 once there is an event, or a comment has to be sent; an error before that has a status of its own,
    and one after it is the last event. A client that reads slowly gets fewer, larger pieces, and delays no others.
    """

    def __init__(self, service: Service, request: AnyRequest, endpoint: Endpoint):
        """Make the response. `endpoint`: the request's own, which has the form of errors and the last line."""
        self._service, self._request, self._endpoint = service, request, endpoint
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Raises the RequestError of a request that had no event yet, and ClientGone."""
        form = self._endpoint.form
        scope.setdefault("state", {})[CONNECTION_COMMENT] = form.comment
        writer, task = _Writer(send, _headers(self._request, form), form.comment), asyncio.current_task()
        assert task is not None
        gone = asyncio.ensure_future(until_gone(receive))
        gone.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
        try:
            with self._service.writing():  # until the last event is written
                await self._write(writer)
        except asyncio.CancelledError:
            if not gone.done() or gone.cancelled():
                raise
            task.uncancel()
            if not writer.begun:
                raise ClientGone from None
        finally:
            writer.stop()
            gone.cancel()

    async def _write(self, writer: "_Writer") -> None:
        try:
            async with self._service.stream(self._request) as events:
                while written := await events.sse():
                    await writer.write(written)
            if self._endpoint.last_line is not None:
                await writer.write(data_event(self._endpoint.last_line))
        except RequestError as error:
            if not writer.begun:
                raise
            note_error(error)
            await writer.write(self._endpoint.form.error(self._endpoint.error(error)))
        except Exception as error:
            if not writer.begun:
                raise
            log.exception("a stream failed")
            note_error(error)
            failure = InternalError(f"the stream failed: {type(error).__name__}")
            await writer.write(self._endpoint.form.error(self._endpoint.error(failure)))
        await writer.end()


def _headers(request: AnyRequest, form: StreamForm) -> list[tuple[bytes, bytes]]:
    own = {"Content-Type": form.content_type, **ignored_header(request.ignored)}.items()
    return [*HEADERS, *((name.lower().encode(), value.encode()) for name, value in own)]


class _Writer:
    """Writer of the response, which knows if any of it was sent."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], comment: bytes):
        """`comment`: content of an idle stream; empty: nothing is sent."""
        self.begun = False
        self._send, self._headers, self._comment = send, headers, comment
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._commenting: asyncio.Task[None] | None = None
        self._idle = self._loop.call_at(self._last + IDLE_SECONDS, self._look)

    async def write(self, content: bytes) -> None:
        """Send content; waits while the client does not read."""
        self._last = self._loop.time()
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if len(content) <= SLICE_BYTES:  # without one coroutine more for each event
            await self._send({"type": "http.response.body", "body": content, "more_body": True})
        else:
            await send_slices(self._send, content)

    async def end(self) -> None:
        """Send the end of the body."""
        self.stop()
        await self._send({"type": "http.response.body", "body": b""})

    def stop(self) -> None:
        """Send no more comments."""
        self._idle.cancel()
        if self._commenting is not None:
            self._commenting.cancel()

    def _look(self) -> None:
        """Send a comment if nothing was sent for IDLE_SECONDS."""
        now = self._loop.time()
        if self._comment and now - self._last >= IDLE_SECONDS:
            self._last = now
            if self._commenting is None or self._commenting.done():
                self._commenting = self._loop.create_task(self.write(self._comment))
        self._idle = self._loop.call_at(self._last + IDLE_SECONDS, self._look)
