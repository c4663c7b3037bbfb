"""One HTTP connection: strict requests, and deadlines for heads and bodies."""

import asyncio
import json
import socket
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from run_gpt.errors import DeadlineExceeded, InvalidRequest, RequestError, Unavailable
from run_gpt.gateway.heads import MAX_HEAD_BYTES, TOO_LARGE, Refused, check_head
from run_gpt.gateway.open_connections import OpenConnections
from run_gpt.gateway.pipelining import MAX_PIPELINED, Flow, end_of_heads

HEAD_SECONDS = 10.0
"""Time in which the head of a request must arrive. A new connection without one is closed then."""
BODY_SECONDS = 20.0
"""Time in which a body must arrive; each LEAST_RATE bytes of it add a second."""
LEAST_RATE = 16 * 1024
CLOSE_SECONDS = 30.0
"""Time that a client gets to read its last answer. Meanwhile the rest of its body is read and dropped."""
STALL_SECONDS = 120.0
"""Time after which a client that reads nothing of an answer is gone."""
GONE_SECONDS = 0.25
"""Time after which a client that sends no more is asked whether it still reads."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Interim answer, which clients skip. A client that has closed its connection answers with a reset."""
MAX_DROPPED_BYTES = 16 * 1024 * 1024
"""Most bytes that are dropped after the last answer, unless its request's `state` has DROP_ALL."""
DROP_ALL = "drop_all"
COMMENT = "comment"
"""Name in a request's `state` of what can be sent for the same purpose when the answer has begun."""


class _Writing:
    """Transport of an answer. To close it is to let the client read the answer first."""

    def __init__(self, connection: "Connection"):
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.finish


class Connection(HttpToolsProtocol):
    """One connection. uvicorn reads its requests and writes the answers; this class bounds what a client may do."""

    flow: Flow

    def __init__(self, connections: OpenConnections, config: Config, state: ServerState, sock: socket.socket):
        super().__init__(config, state, {})
        self.address = ""
        self._connections, self._socket = connections, sock
        self._running: RequestResponseCycle | None = None
        """The answer in progress, or the last one."""
        self._deadline: float | None = None
        """Time by which the client must send what is due, or close; None while the server works."""
        self._head_bytes = 0
        self._in_body = False
        """True while the body of the last request, `cycle`, is incomplete."""
        self._over = False
        """True when nothing more is read: what comes is dropped."""
        self._half_closed = False
        self._dropped = 0
        self._unread = (0, 0.0)
        """Bytes that the client has not read, and the time since which there are as many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.address = self.client[0] if self.client else ""
        room = self._connections.add(self)
        self._wait(HEAD_SECONDS)
        if not room:
            self._refuse(503, Unavailable("the server has too many connections: try again in a moment"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._over:
            self._drop(data)
        else:
            self._read(self.flow.rest + data)

    def _read(self, data: bytes) -> None:
        """Parse received bytes as far as the pipeline has room for the requests in them, and keep the rest."""
        begin = 0
        while begin < len(data) and not self._over and (room := MAX_PIPELINED - len(self.pipeline)) > 0:
            end = end_of_heads(data, begin, room)
            self._parse(data[begin:end])
            begin = end
        self.flow.rest = b"" if self._over else data[begin:]
        if self.flow.rest:
            self.flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        if not self._in_body:
            if not self._head_bytes and not self._answering:
                self._deadline = self.loop.time() + HEAD_SECONDS
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # no other protocol is spoken here: answer in this one, then close
            self._stop_reading()
        except httptools.HttpParserError as error:
            refused = error.__context__
            if not isinstance(refused, Refused):
                refused = Refused(400, f"this is not HTTP/1.1: {str(error)[:100]}")
            self._refuse(refused.status, refused.error)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, InvalidRequest(TOO_LARGE))

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """See asyncio.Protocol. Whole requests are answered although their client sends no more."""
        if self._half_closed:
            return True
        if not self._answering or self._is_half_sent or self.scheme == "https":
            return None
        self._half_closed = True
        if not self._over:
            self._stop_reading()
        self.loop.call_later(GONE_SECONDS, self._ask, 0)
        return True

    def on_headers_complete(self) -> None:
        """See httptools. Raises Refused."""
        self.url = check_head(self.parser.get_http_version(), self.url, self.headers)
        self._head_bytes = 0
        before = self._running if self._answering else None
        super().on_headers_complete()
        self._in_body = True
        self.cycle.transport = _Writing(self)  # type: ignore[assignment]
        if before is None:
            self._running = self.cycle
            self._wait(BODY_SECONDS)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._deadline is not None:
            self._deadline += len(body) / LEAST_RATE
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        super().on_message_complete()
        self._in_body = False
        if self._answering:
            self._work()
        else:
            self._wait(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        """See uvicorn. Go on with the next request that has come already."""
        following = self.pipeline[-1][0] if self.pipeline else None
        if self._over and following is None:
            return
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's timer would run on while the next request is answered
        if following is not None:
            self._running = following
        if self._in_body:
            self._wait(BODY_SECONDS)
        elif following is None:
            self._wait(HEAD_SECONDS if self._head_bytes else self.timeout_keep_alive)
        if self.flow.rest:
            self._read(self.flow.rest)
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """See uvicorn."""
        if self._over and not self._answering:
            self.transport.abort()
        else:
            super().shutdown()

    def check(self, now: float) -> None:
        """End this connection if its client is late."""
        if (unread := self.transport.get_write_buffer_size()) != self._unread[0] or not unread:
            self._unread = (unread, now)
        if now - self._unread[1] > STALL_SECONDS:
            self.transport.abort()
        elif self._deadline is None:
            return
        elif self.flow.read_paused:  # the server does not read what the client sends
            self._deadline = now + BODY_SECONDS
        elif now > self._deadline:
            self._end_late()

    def finish(self) -> None:
        """Close the connection once the client can have read the answer.

        A client that still sends its body reads nothing before it has sent all, and a reset would take the answer away.
        So the rest is read and dropped.
        """
        unread = self._in_body or self._over or bool(self.flow.rest)
        self._over = True
        self.pipeline.clear()  # the connection closes before the requests that wait
        self.flow.rest = b""
        self._wait(CLOSE_SECONDS)
        if not unread or self._half_closed or not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection
            self.transport.abort()
        else:
            self.flow.resume_reading()

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    @property
    def _is_half_sent(self) -> bool:
        """True when the request that is being answered lacks a part of its body."""
        return self._in_body and self._running is self.cycle

    def _wait(self, seconds: float) -> None:
        """Give the client so many seconds for its next move."""
        self._deadline = self.loop.time() + seconds
        self._connections.set_waiting(self, waiting=True)

    def _work(self) -> None:
        """Give the server all the time that it needs."""
        self._deadline = None
        self._connections.set_waiting(self, waiting=False)

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        state: Any = {} if self._running is None else self._running.scope["state"]
        if self._dropped > MAX_DROPPED_BYTES and DROP_ALL not in state:
            self.transport.abort()

    def _end_late(self) -> None:
        if self._over:
            self.transport.abort()
        elif self._in_body:
            self._refuse(408, DeadlineExceeded("the rest of the request's body did not come in time"))
        elif self._head_bytes:
            self._refuse(408, DeadlineExceeded(f"the request's head did not come in {HEAD_SECONDS:g} seconds"))
        else:
            self.transport.close()

    def _refuse(self, status: int, error: RequestError) -> None:
        """Answer with an error and close. Answers in progress come first, and then without this one."""
        if self._over:
            return
        running = self._running
        if running is not None and self._answering:
            if running.response_started or not self._is_half_sent:
                self._stop_reading()
                return
            running.disconnected = True
            running.message_event.set()
        body = json.dumps({"error": error.to_dict()}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._over = True
        self.finish()

    def _stop_reading(self) -> None:
        """Answer the whole requests that have come, then close."""
        if self._in_body and self.pipeline:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None:
            last.keep_alive = False
        self._over = True
        self.flow.rest = b""

    def _ask(self, turn: int) -> None:
        """Find out if a client that sends no more has closed its connection, and end the request then.

        Its system resets the connection when something is sent to it.
        """
        if self.transport.is_closing() or not self._answering:
            return
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if turn % 16 == 0 and not self.flow.write_paused:
            self.transport.write(self._probe())
        self.loop.call_later(1.0 if turn else 0.05, self._ask, turn + 1)

    def _probe(self) -> bytes:
        """Return what a client skips at this point of its answer, if there is something."""
        assert self._running is not None
        scope: Any = self._running.scope
        if not self._running.response_started:
            return CONTINUE if scope["http_version"] == "1.1" else b""
        comment = scope["state"].get(COMMENT, b"") if self._running.chunked_encoding else b""
        return b"%x\r\n%b\r\n" % (len(comment), comment) if comment else b""
