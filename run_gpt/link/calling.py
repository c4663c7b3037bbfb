"""The gateway's end of the inner wire: one call to an executor, and the exchanges that share it."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Any

import grpc
import msgspec

from run_gpt.api.pieces import Pending, Update, Whole
from run_gpt.config import EXECUTOR_TOKEN_VARIABLE
from run_gpt.errors import DeadlineExceeded, InternalError, RequestError, Unavailable, error_from_dict
from run_gpt.link import frames
from run_gpt.link.frames import METHOD, TOKEN, VERSION, Asking
from run_gpt.link.outbox import Outbox, end_tasks

log = logging.getLogger(__name__)

NO_CONNECTION = "the connection to the replica that answered this request failed"
WELCOME_SECONDS = 10.0
"""Longest time that an executor with an open port may take to send its version."""


class ConnectionFailed(Unavailable):
    """Failure of the connection to a replica: the only failure after which a call may be tried again."""


class OtherVersion(Unavailable):
    """Error of a replica that has another version of the inner wire, or another token."""


class Exchange:
    """One request and the part of its answer that was not read yet. It ends exactly once."""

    def __init__(self, arrived: asyncio.Event, forget: Callable[[], None]):
        """Make it. `arrived` is set whenever there is something to read. `forget` makes the executor stop."""
        self.over = False
        """True when nothing more can come."""
        self.error: RequestError | None = None
        """The error that it ended with."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Future that is done at the end; wait for it with `asyncio.wait`."""
        self._arrived = arrived
        self._forget = forget
        self._pending = Pending()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def has_news(self) -> bool:
        """True when there is something to take."""
        return bool(self._pending)

    def limit(self, seconds: float) -> None:
        """End it with DeadlineExceeded after so many seconds."""
        error = DeadlineExceeded(f"the answer was not complete after {round(seconds, 2):g} s")
        self._deadline = asyncio.get_running_loop().call_later(max(0.0, seconds), self.fail, error)

    def take(self) -> list[Update]:
        """Return the updates since the last call."""
        return self._pending.take()

    def put(self, update: Update) -> None:
        """Take in an update from the executor."""
        self._pending.put(update)
        self._arrived.set()

    def end(self, error: RequestError | None = None) -> None:
        """Take in its end; updates that came before can still be read."""
        if self.over:
            return
        self.over, self.error = True, error
        if self._deadline is not None:
            self._deadline.cancel()
        self.ended.set_result(None)
        self._arrived.set()

    def fail(self, error: RequestError) -> None:
        """End it from here, with an error for its reader."""
        if not self.over:
            self._forget()
            self.end(error)

    def close(self) -> None:
        """Stop it, if it has not ended: the rest is not read."""
        if not self.over:
            self._forget()
            self.end()


class Link:
    """The call to the executor behind `channel`. It is made at the first request, and again after a failure.

    `token`: the token that the executor asks for, if it does.
    """

    def __init__(self, channel: Any, token: str | None = None):
        metadata = None if token is None else ((TOKEN, token),)
        self._call = partial(channel.stream_stream(METHOD), metadata=metadata)
        self._opening: asyncio.Task[_Connection] | None = None

    async def start(
        self,
        path: str,
        body: bytes,
        *,
        request_id: str,
        trace: Mapping[str, str],
        arrived: asyncio.Event | None = None,
        tenant: str = "",
    ) -> Exchange:
        """Send a request of this `tenant`. Raises ConnectionFailed, OtherVersion."""
        if self._opening is None or (self._opening.done() and not _is_open(self._opening)):
            # The call belongs to no request: it does not inherit this one's context.
            self._opening = asyncio.create_task(_open(self._call), context=Context())
        connection = await asyncio.shield(self._opening)
        return connection.start(path, body, request_id, dict(trace), tenant, arrived or asyncio.Event())

    async def close(self) -> None:
        """End the call, and all exchanges on it."""
        if self._opening is not None:
            await end_tasks(self._opening)
            if _is_open(self._opening):
                await self._opening.result().close()


def _is_open(opening: "asyncio.Task[_Connection]") -> bool:
    return not opening.cancelled() and opening.exception() is None and opening.result().is_open


async def _open(method: Callable[[], Any]) -> "_Connection":
    """Make a call, and check the version at its other end."""
    call = method()
    try:
        async with asyncio.timeout(WELCOME_SECONDS):
            await call.write(frames.encode(frames.Hello(VERSION)))
            frame = await call.read()
        if frame is grpc.aio.EOF:
            raise ConnectionFailed("the replica is ending")
        welcome = frames.decode_welcome(frame)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:  # the latter: it ended before the write
        call.cancel()
        raise _failure(await call.code()) from error
    except TimeoutError as error:
        call.cancel()
        raise ConnectionFailed(NO_CONNECTION) from error
    except msgspec.DecodeError as error:
        call.cancel()
        raise OtherVersion(f"the replica has another inner wire than this gateway: {error}") from error
    if welcome.version != VERSION:
        call.cancel()
        said = f"version {welcome.version} of the inner wire"
        raise OtherVersion(f"the replica has {said}, this gateway {VERSION}: update one of them")
    return _Connection(call)


def _failure(code: grpc.StatusCode) -> Unavailable:
    """Return the error of a call that ended before its welcome."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return OtherVersion(f"the replica has no inner wire, this gateway has version {VERSION}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return OtherVersion(f"the replica has another token than this gateway: set ${EXECUTOR_TOKEN_VARIABLE} for both")
    return ConnectionFailed(NO_CONNECTION)


class _Connection:
    """A call whose ends speak the same version."""

    def __init__(self, call: Any):
        self.is_open = True
        self._numbers = itertools.count()
        self._exchanges: dict[int, Exchange] = {}
        self._asking: list[Asking] = []
        self._outbox = Outbox(self._take)
        self._running = asyncio.create_task(self._run(call))

    def start(
        self, path: str, body: bytes, request_id: str, trace: dict[str, str], tenant: str, arrived: asyncio.Event
    ) -> Exchange:
        """Send a request."""
        if not self.is_open:
            raise ConnectionFailed(NO_CONNECTION)
        number = next(self._numbers)
        exchange = self._exchanges[number] = Exchange(arrived, lambda: self._cancel(number))
        self._ask(frames.Start(number, path, body, request_id, trace, tenant))
        return exchange

    async def close(self) -> None:
        """End the call, and the exchanges that run on it."""
        await end_tasks(self._running)

    def _cancel(self, number: int) -> None:
        if self._exchanges.pop(number, None) is not None:
            self._ask(frames.Cancel(number))

    def _ask(self, message: Asking) -> None:
        self._asking.append(message)
        self._outbox.notify()

    def _take(self) -> list[Asking]:
        asking, self._asking = self._asking, []
        return asking

    async def _run(self, call: Any) -> None:
        sending = asyncio.create_task(self._outbox.send_all(call.write))
        sending.add_done_callback(lambda task: call.cancel())  # a call that takes no writes gives no reads either
        error: RequestError = ConnectionFailed(NO_CONNECTION)
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                for message in frames.decode_answering(frame):
                    self._receive(message)
        except grpc.aio.AioRpcError as failure:
            log.debug("a link broke: %s", failure.details())
        except msgspec.DecodeError as failure:
            error = InternalError(f"the replica's answer cannot be read: {failure}")
        finally:
            self.is_open = False
            await end_tasks(sending)
            for exchange in list(self._exchanges.values()):
                exchange.end(error)

    def _receive(self, message: frames.Answering) -> None:
        if (exchange := self._exchanges.get(message.stream)) is None:
            return  # it was cancelled, and this was on its way
        match message:
            case frames.Next():
                exchange.put(message.piece)
            case frames.Begun():
                exchange.put(message.head)
            case frames.Body():
                exchange.put(Whole(message.json, message.parts) if message.parts else message.json)
            case frames.Done():
                del self._exchanges[message.stream]
                exchange.end()
            case frames.Failed():
                del self._exchanges[message.stream]
                exchange.end(error_from_dict(message.error))
