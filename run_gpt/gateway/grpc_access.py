"""The interceptor before the gRPC services: it checks the key of each call, sets its request id, and logs it."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import Any, cast

import grpc

from run_gpt.errors import AuthenticationError, InvalidRequest, RequestError
from run_gpt.gateway.guesses import peer_address
from run_gpt.gateway.keys import Keys, sent_key
from run_gpt.gateway.record import Count, Record, admit, begin
from run_gpt.gateway.rpc import ERROR_METADATA
from run_gpt.process import request_ids

OPEN_METHODS = ("/grpc.health.v1.Health/", "/jina.JinaGatewayDryRunRPC/dry_run")
"""Prefixes of methods that need no key and are neither logged nor counted: monitoring calls them often."""
DISCARD_SECONDS = 5.0
"""Time that a refused caller gets to write its first message."""
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that gives each call its record, counts it at its end, and checks its key except for OPEN_METHODS.

    The answer's initial metadata has the request id, and a malformed id is refused. No other interceptor that answers
    calls may come before this one. `keys` None: calls need none.
    """

    def __init__(self, keys: Keys | None, count: Count, *, log_requests: bool = False):
        self._keys = keys
        self._count = count
        self._log_requests = log_requests

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if details.method.startswith(OPEN_METHODS):
            return handler
        record, metadata = Record(method="gRPC", route=details.method), details.invocation_metadata
        key: str | None = None
        try:
            record.take_client_id(_value(metadata, request_ids.METADATA))
            if self._keys is not None:
                key = _sent(metadata)
                name = self._keys.check(key)
                admit(record, name, self._keys.rights(name))
        except (AuthenticationError, InvalidRequest) as error:
            record.error = error.code
            handler = _refusal(error, streaming=handler is not None and handler.request_streaming)
        begin(record)  # each call has a task, and so a context, of its own
        if handler is None:
            self._ended(record, grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        return _followed(handler, record, self._ended, partial(self._settle, record, key))

    async def _settle(self, record: Record, key: str | None, context: Any) -> None:
        """Note the caller's address, which only the context of the call has, and wait as its key must."""
        record.address = peer_address(context.peer())
        if self._keys is not None and key is not None:
            await self._keys.settle(key, record.address, right=record.key is not None)

    def _ended(self, record: Record, status: str) -> None:
        self._count(record, status)
        if self._log_requests:
            record.write(status)


def _sent(metadata: Any) -> str:
    """Return the key in a call's metadata: `Bearer KEY`, or the key alone, as the published inference-client sends it.

    Raises AuthenticationError.
    """
    return sent_key(_value(metadata, "authorization"), plain=True)


def _value(metadata: Any, name: str) -> str | None:
    value = next((value for key, value in metadata or () if key == name), None)
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _refusal(error: RequestError, *, streaming: bool) -> Any:
    """Return a handler that refuses a call, for an answer of one message as well as for a stream.

    It reads one message of a `streaming` caller: an asyncio client that cannot write its first one sees no error.
    """

    async def refuse(messages: AsyncIterator[bytes], context: Any) -> None:
        if streaming:
            with suppress(TimeoutError, StopAsyncIteration):
                async with asyncio.timeout(DISCARD_SECONDS):
                    await anext(messages)
        metadata = ((ERROR_METADATA, json.dumps(error.to_dict())),)
        await context.abort(grpc.StatusCode[error.grpc_code], error.message, metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _followed(handler: Any, record: Record, ended: Count, settle: Callable[[Any], Awaitable[None]]) -> Any:
    """Return the handler, made to await `settle` and send the request id first, and to call `ended` at its end."""
    kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
    behaviour = getattr(handler, kind)
    named = ((request_ids.METADATA, record.shown_id),)

    async def whole(request: Any, context: Any) -> Any:
        with _following(record, context, ended):
            await settle(context)
            await context.send_initial_metadata(named)
            return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        with _following(record, context, ended):
            await settle(context)
            await context.send_initial_metadata(named)
            async with aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message

    return handler._replace(**{kind: stream if inspect.isasyncgenfunction(behaviour) else whole})


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
