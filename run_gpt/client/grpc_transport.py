"""Transport over gRPC: Jina's messages over one channel.

The channel is gRPC's threaded one, which belongs to no event loop. gRPC's asyncio channels disturb each other in a
process with two loops, and a process that uses both the sync and the async calls has two.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import grpc

from run_gpt.api.answers import Body
from run_gpt.api.endpoints import endpoint_of
from run_gpt.api.request import AnyRequest
from run_gpt.client import wire
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.transport import broken, not_rungpt, read_answer, sent_id, too_late, unreachable
from run_gpt.client.trust import grpc_trust
from run_gpt.errors import (
    AuthenticationError,
    Forbidden,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestError,
    Unavailable,
    error_from_dict,
)
from run_gpt.process import request_ids

# The metadata key under which the gateway sends an error's JSON.
ERROR_KEY = "rungpt-error"

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Find a server soon after its start, not after gRPC's back-off of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_BY_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFull,
}


class GrpcTransport:
    """One channel, opened by the first request."""

    def __init__(self, endpoint: Endpoint, token: str | None, ca: Path | None = None):
        self._ca = ca
        self._endpoint = endpoint
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._lock = threading.Lock()
        self._channel: Any = None
        self._closed = False

    async def answer(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> Body:
        """See Transport."""
        metadata = (*self._metadata, *sent_id(request_id).items())
        method = self._open().unary_unary(
            wire.UNARY,
            request_serializer=wire.DataRequest.SerializeToString,
            response_deserializer=wire.DataRequest.FromString,
        )
        called = endpoint_of(request, stream=False)
        message = wire.unary_message(called.path, request)
        call = method.future(message, timeout=timeout, metadata=metadata)
        with _named(call, request_id):
            try:
                response = await _result(call)
            except grpc.RpcError as error:
                raise self._error(error, timeout) from error
            docs = response.data.docs.docs
            return read_answer(called.body(stream=False), wire.fields_of(docs[0]) if docs else {}, self._endpoint)

    async def stream(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> AsyncIterator[Body]:
        """See Transport."""
        method = self._open().unary_stream(
            wire.STREAM,
            request_serializer=wire.SingleDocumentRequest.SerializeToString,
            response_deserializer=wire.SingleDocumentRequest.FromString,
        )
        called = endpoint_of(request, stream=True)
        kind = called.body(stream=True)
        metadata = (*self._metadata, ("endpoint", called.path), *sent_id(request_id).items())
        call = method(wire.stream_message(called.path, request), timeout=timeout, metadata=metadata)
        begun = False
        with _named(call, request_id):
            try:
                async for response in _messages(call):
                    yield read_answer(kind, wire.fields_of(response.document), self._endpoint)
                    begun = True
            except grpc.RpcError as error:
                raise self._error(error, timeout, begun=begun) from error
            finally:
                call.cancel()

    async def aclose(self) -> None:
        """See Transport."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise Unavailable("this model is closed")
            if self._channel is None:
                address = self._endpoint.address
                if self._endpoint.is_secure:
                    self._channel = grpc.secure_channel(address, grpc_trust(self._ca), _OPTIONS)
                else:
                    self._channel = grpc.insecure_channel(address, _OPTIONS)
            return self._channel

    def _error(self, error: Any, timeout: float | None, *, begun: bool = False) -> RequestError:
        """Return our error for a failed call: the error that the gateway sent, else one for the status."""
        if (sent := _sent_error(error)) is not None:
            return sent
        status, details = error.code(), " ".join((error.details() or "").split())
        if status is grpc.StatusCode.UNAVAILABLE:
            return broken(self._endpoint, details) if begun else unreachable(self._endpoint, details)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED and timeout is not None:
            return too_late(self._endpoint, timeout)
        if status is grpc.StatusCode.CANCELLED and self._closed:
            return Unavailable("this model was closed before the answer was complete")
        if (cls := _BY_STATUS.get(status)) is not None:
            return cls(details)
        return not_rungpt(self._endpoint, f"gRPC status {status.name}, {details[:200]!r}")


def _named(call: Any, request_id: str | None) -> AbstractContextManager[None]:
    """Give errors the name of the request, as Transport describes."""

    def name() -> str | None:  # called after a message or at the call's end: any metadata has arrived by then
        names = (value for key, value in call.initial_metadata() or () if key == request_ids.METADATA)
        return next(names, request_id)

    return request_ids.in_errors(name)


def _sent_error(error: Any) -> RequestError | None:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            try:
                return error_from_dict(json.loads(value))
            except (ValueError, AttributeError):
                return InternalError(f"the server failed with an error that cannot be read: {value!r:.80}")
    return None


async def _result(call: Any) -> Any:
    """Return the response of a unary call; cancelling this coroutine cancels the call."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no coroutine waits
            loop.call_soon_threadsafe(done.set)

    call.add_done_callback(wake)
    try:
        await done.wait()
    finally:
        call.cancel()
    return call.result()


async def _messages(call: Any) -> AsyncIterator[Any]:
    """Yield the responses of a streamed call. A thread reads them, since reading blocks."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    def put(item: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no coroutine waits
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def read() -> None:
        try:
            for message in call:
                put(message)
        except grpc.RpcError as error:
            put(error)
        else:
            put(None)

    threading.Thread(target=read, name="rungpt-stream", daemon=True).start()
    while (item := await arrived.get()) is not None:
        if isinstance(item, grpc.RpcError):
            raise item
        yield item
