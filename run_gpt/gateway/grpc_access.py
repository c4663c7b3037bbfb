"""The interceptor before the gRPC services: it checks the key of each call, sets its request id, and logs it."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError, InvalidRequest, QueueFull, RequestError
from run_gpt.gateway.grpc_connections import peer_of
from run_gpt.gateway.grpc_reads import Bound, Reads
from run_gpt.gateway.guesses import peer_address
from run_gpt.gateway.keys import API_KEY_HEADER, Keys, sent_key
from run_gpt.gateway.proxies import FORWARDED, Proxies
from run_gpt.gateway.record import Count, Record, admit, begin
from run_gpt.gateway.rpc import abort
from run_gpt.process import request_ids

OPEN_METHODS = ("/grpc.health.v1.Health/", "/jina.JinaGatewayDryRunRPC/dry_run")
"""Prefixes of methods that need no key and are neither logged nor counted: monitoring calls them often."""
OPEN_BOUND = Bound(most_bytes=65536, seconds=10.0, most_waiting=256)
"""Bound of the messages of OPEN_METHODS."""
MOST_OPEN = 256
"""Most calls of OPEN_METHODS at once, such as health watches; one more ends the oldest."""
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
FIRST_MESSAGE_SECONDS = 60.0
MOST_WAITING = 4096
"""Most calls with a key that wait for a message at once."""
SENDING_SECONDS = 0.1
"""Time before a call is refused. gRPC's asyncio client that still sends its first message when the call ends gives its
user an error of its own, without the status."""


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that gives each call its record, counts it at its end, and checks its key except for OPEN_METHODS.

    The answer's initial metadata has the request id, and a malformed id is refused. Messages are read by `reads`, at
    most `most_bytes` each. No other interceptor that answers calls may come before this one. `keys` None: calls need
    none.
    """

    def __init__(
        self,
        keys: Keys | None,
        count: Count,
        *,
        reads: Reads | None = None,
        most_bytes: int = GatewayConfig.max_body_bytes,
        log_requests: bool = False,
        proxies: Proxies | None = None,
    ):
        self._keys = keys
        self._proxies = proxies or Proxies()
        self.reads = Reads() if reads is None else reads
        self._bound = Bound(most_bytes, FIRST_MESSAGE_SECONDS, MOST_WAITING)
        self._open_calls: dict[asyncio.Timeout, None] = {}
        self._count = count
        self._log_requests = log_requests

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if details.method.startswith(OPEN_METHODS):
            return None if handler is None else self._crowded(bounded(handler, self.reads, OPEN_BOUND))
        record, metadata = Record(method="gRPC", route=details.method), details.invocation_metadata
        key: str | None = None
        try:
            record.take_client_id(_value(metadata, request_ids.METADATA))
            if self._keys is not None:
                key = _sent(metadata)
                await self._keys.refresh()
                name = self._keys.check(key)
                admit(record, name, self._keys.rights(name))
        except (AuthenticationError, InvalidRequest) as error:
            record.error = error.code
            handler = _refusal(error)
        else:
            handler = None if handler is None else bounded(handler, self.reads, self._bound)
        begin(record)  # each call has a task, and so a context, of its own
        if handler is None:
            self._ended(record, grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        return _followed(handler, record, self._ended, partial(self._settle, record, key, _values(metadata, FORWARDED)))

    async def _settle(self, record: Record, key: str | None, forwarded: Sequence[str], context: Any) -> None:
        """Note the caller's address, which only the context of the call has, and wait as its key must."""
        record.address = self._proxies.client(peer_address(context.peer()), forwarded)
        if self._keys is not None and key is not None:
            await self._keys.settle(key, record.address, right=record.key is not None)

    def _crowded(self, handler: Any) -> Any:
        """Return the handler of an open method, made to end the oldest call when there are more than MOST_OPEN."""

        async def call(messages: AsyncIterator[bytes], context: Any) -> None:
            try:
                async with asyncio.timeout(None) as ending:
                    self._open_calls[ending] = None
                    if len(self._open_calls) > MOST_OPEN:
                        oldest = next(iter(self._open_calls))
                        del self._open_calls[oldest]
                        oldest.reschedule(0)
                    try:
                        await handler.stream_stream(messages, context)
                    finally:
                        self._open_calls.pop(ending, None)
            except TimeoutError:
                await abort(context, QueueFull(f"more than {MOST_OPEN} calls of methods that need no key"))

        return handler._replace(stream_stream=call)

    def _ended(self, record: Record, status: str) -> None:
        self._count(record, status)
        if self._log_requests:
            record.write(status)


def _sent(metadata: Any) -> str:
    """Return the key in a call's metadata: `Bearer KEY`, or the key alone, as the published inference-client sends it.

    Raises AuthenticationError.
    """
    return sent_key(_values(metadata, "authorization"), _values(metadata, API_KEY_HEADER), plain=True)


def _value(metadata: Any, name: str) -> str | None:
    return next(iter(_values(metadata, name)), None)


def _values(metadata: Any, name: str) -> list[str]:
    values = [value for key, value in metadata or () if key == name]
    return [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]


def _refusal(error: RequestError) -> Any:
    """Return a handler that refuses a call of any kind. It reads nothing of it."""

    async def refuse(messages: AsyncIterator[bytes], context: Any) -> None:
        await asyncio.sleep(SENDING_SECONDS)
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def bounded(handler: Any, reads: Reads, bound: Bound) -> Any:
    """Return the handler, made to read its messages by `reads`. It calls gRPC's methods of any kind in the same way.

    gRPC's own handlers of one message read it before any code of ours runs, however long it is and takes.
    """
    kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
    behaviour = getattr(handler, kind)

    async def call(messages: AsyncIterator[bytes], context: Any) -> None:
        arriving = _arriving(handler.request_deserializer, reads, bound, messages, context)
        async with aclosing(arriving):
            try:
                request: Any = arriving if handler.request_streaming else await _only(arriving)
                await _answer(behaviour, request, partial(_write, reads, context), context, handler.response_streaming)
            except RequestError as error:
                await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)


async def _arriving(
    deserialize: Any, reads: Reads, bound: Bound, messages: AsyncIterator[bytes], context: Any
) -> AsyncGenerator[Any]:
    """Yield the messages of a call. Raises a RequestError for one that is out of bounds or cannot be read."""
    peer, first = peer_of(context), True
    while (message := await reads.next(messages, peer, bound, first=first)) is not None:
        first = False
        try:
            yield message if deserialize is None else deserialize(message)
        except DecodeError as error:
            raise InvalidRequest(f"the message cannot be read: {error}") from None


async def _only(arriving: AsyncIterator[Any]) -> Any:
    """Return the message of a call that has one."""
    async for message in arriving:
        return message
    raise InvalidRequest("this call has no message")


async def _write(reads: Reads, context: Any, answer: Any) -> None:
    reads.writing += 1
    try:
        await context.write(answer)
    finally:
        reads.writing -= 1


async def _answer(behaviour: Any, request: Any, write: Any, context: Any, streaming: bool) -> None:
    if inspect.isasyncgenfunction(behaviour):
        async with aclosing(behaviour(request, context)) as answers:
            async for answer in answers:
                await write(answer)
        return
    answer = await behaviour(request, context)
    if not streaming:
        await write(answer)


def _followed(handler: Any, record: Record, ended: Count, settle: Callable[[Any], Awaitable[None]]) -> Any:
    """Return the handler, made to await `settle` and send the request id first, and to call `ended` at its end."""
    named = ((request_ids.METADATA, record.shown_id),)

    async def call(messages: AsyncIterator[bytes], context: Any) -> None:
        with _following(record, context, ended):
            await settle(context)
            await context.send_initial_metadata(named)
            await handler.stream_stream(messages, context)

    return handler._replace(stream_stream=call)


@contextmanager
def _following(record: Record, context: Any, ended: Count) -> Iterator[None]:
    status = "OK"
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        status = grpc.StatusCode.CANCELLED.name
        raise
    except grpc.aio.AbortError:
        status = cast("grpc.StatusCode", context.code()).name
        raise
    except BaseException:
        status = grpc.StatusCode.UNKNOWN.name
        raise
    finally:
        ended(record, status)
