"""The only way to the executors: the least busy ready replica, a deadline, cancellation, and a retry that is safe.

A failure becomes a RequestError here and nowhere else. A call is tried again, on another replica, only when the
connection failed and nothing of its answer had arrived; so no text is ever sent twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any, cast

import grpc

from run_gpt.api import documents
from run_gpt.api.answers import Answer
from run_gpt.api.schema import AnyRequest, Request
from run_gpt.errors import DeadlineExceeded, InternalError, RequestError, Unavailable
from run_gpt.gateway.adapters import AdapterChanges
from run_gpt.gateway.endpoints import Endpoint, endpoint_of
from run_gpt.gateway.messages import answer_of, check_header
from run_gpt.gateway.replica import Replica

# The connection is gone. CANCELLED comes from the executor's side when its server stops (our own cancellation is an
# asyncio.CancelledError).
_NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
ATTEMPTS = 3
ADAPTER_SECONDS = 60.0
"""Longest that one replica may take to change an adapter."""


class ConnectionFailed(Unavailable):
    """The connection to a replica failed: the one failure after which a call may be tried again."""


class ReplicaPool:
    """The replicas at `addresses` ("host:port"). Start and close it on one event loop."""

    def __init__(self, addresses: Sequence[str]):
        self.adapters = AdapterChanges(self._ask)
        self.replicas = [Replica(address, self.adapters.bring_up_to_date) for address in addresses]
        self._watchers: list[asyncio.Task[None]] = []
        self._turn = 0
        self._calls: set[Any] = set()
        self._stopped: str | None = None

    async def start(self) -> None:
        """Watch the replicas from now on; a first look at each is over when this returns."""
        await asyncio.gather(*(replica.probe() for replica in self.replicas))
        self._watchers = [asyncio.create_task(replica.watch()) for replica in self.replicas]

    async def close(self) -> None:
        """End the watchers and the connections."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas))

    def stop(self, why: str) -> None:
        """End every running call, and refuse new ones, with Unavailable(why)."""
        self._stopped = why
        for call in list(self._calls):
            call.cancel()

    @property
    def watched(self) -> bool:
        """Whether the watchers live: without them, what is known of the replicas is not true for long."""
        return bool(self._watchers) and not any(watcher.done() for watcher in self._watchers)

    @property
    def ready(self) -> list[Replica]:
        """The replicas that take requests."""
        return [replica for replica in self.replicas if replica.state == "ready"]

    @property
    def model(self) -> str | None:
        """The served model's name, once a replica has said it."""
        return next((replica.status.model for replica in self.replicas if replica.status), None)

    @property
    def context_length(self) -> int | None:
        """Tokens that the served model's context holds, once a replica has said it."""
        return next((replica.status.context_length for replica in self.replicas if replica.status), None)

    def check_ready(self) -> None:
        """Raises Unavailable, which says why, if no replica is ready."""
        if not self.ready:
            raise Unavailable(_why_not([replica.state for replica in self.replicas]))

    async def _ask(self, replica: Replica, request: AnyRequest) -> Answer:
        """The answer of this replica and no other. Raises a RequestError."""
        endpoint, request_id = endpoint_of(request, stream=False), f"rungpt-{endpoint_of(request, stream=False).path}"
        call = replica.unary(endpoint.path, _message(request, request_id), request_id, ADAPTER_SECONDS)
        try:
            return _unary_answer(endpoint, await call)
        except grpc.aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or "", ADAPTER_SECONDS) from error

    async def answer(self, request: AnyRequest, request_id: str, timeout: float) -> Answer:
        """The answer to `request` within `timeout` seconds. Raises a RequestError."""
        endpoint, document = endpoint_of(request, stream=False), _message(request, request_id)
        deadline = time.monotonic() + timeout
        for attempt in count(1):
            replica = self._take()
            call = replica.unary(endpoint.path, document, request_id, _left(deadline))
            self._calls.add(call)
            try:
                return _unary_answer(endpoint, await call)
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                failure = self._failure(error, replica, timeout)
                if attempt == ATTEMPTS or not isinstance(failure, ConnectionFailed):
                    raise failure from error
            finally:
                self._release(replica, call)
        raise InternalError("unreachable: the loop above ends by return or raise")

    async def stream(self, request: Request, request_id: str, timeout: float) -> AsyncIterator[Answer]:
        """The events of the answer, complete or ended by a RequestError. Closing the iterator cancels the call."""
        endpoint, document = endpoint_of(request, stream=True), _message(request, request_id)
        deadline = time.monotonic() + timeout
        progress = Progress(request.sequences)
        for attempt in count(1):
            replica = self._take()
            call = replica.stream(endpoint.path, document, request_id, _left(deadline))
            self._calls.add(call)
            try:
                async for message in call:
                    answer = _stream_answer(endpoint, message)
                    progress.add(answer)
                    yield answer
                if not progress.complete:
                    raise InternalError("the model server ended the answer before it was complete")
                return
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                failure = self._failure(error, replica, timeout)
                if progress.complete:
                    return
                if attempt == ATTEMPTS or progress.begun or not isinstance(failure, ConnectionFailed):
                    raise failure from error
            finally:
                self._release(replica, call)

    def _take(self) -> Replica:
        if self._stopped:
            raise Unavailable(self._stopped)
        self.check_ready()
        replica = least_busy(self.ready, self._turn)
        self._turn += 1
        replica.in_flight += 1
        return replica

    def _release(self, replica: Replica, call: Any) -> None:
        call.cancel()  # no effect on a call that has ended
        self._calls.discard(call)
        replica.in_flight -= 1

    def _failure(self, error: Any, replica: Replica, timeout: float) -> RequestError:
        """The error behind a failed call. Raises the CancelledError of a consumer that went away."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if self._stopped is None or (task is not None and task.cancelling()):
                raise error
            return Unavailable(self._stopped)
        failure = error_of_status(error.code(), error.details() or "", timeout)
        if isinstance(failure, ConnectionFailed):
            replica.suspect()
        return failure


class Progress:
    """How far a stream has come: begun with its first event, complete when each choice has its finish_reason."""

    def __init__(self, sequences: int):
        self.begun = False
        self._sequences = sequences
        self._finished: set[int] = set()

    def add(self, event: Answer) -> None:
        """Take the next event into account."""
        self.begun = True
        for choice in getattr(event, "choices", ()):
            if choice.finish_reason is not None:
                self._finished.add(choice.index)

    @property
    def complete(self) -> bool:
        """Whether nothing more can come."""
        return len(self._finished) >= self._sequences


def least_busy(replicas: Sequence[Replica], turn: int) -> Replica:
    """The replica with the fewest requests of ours; those that tie take turns, by the caller's counter `turn`."""
    fewest = min(replica.in_flight for replica in replicas)
    idle = [replica for replica in replicas if replica.in_flight == fewest]
    return idle[turn % len(idle)]


def error_of_status(code: Any, details: str, timeout: float) -> RequestError:
    """The error that a gRPC status from an executor stands for."""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the answer was not complete after {timeout:g} s")
    if code in _NO_CONNECTION:
        return ConnectionFailed("the connection to the replica that answered this request failed")
    return InternalError(f"the model server failed: {details or code.name}")


def _why_not(states: Sequence[str]) -> str:
    if "connecting" in states and "lost" not in states:
        return "the model is loading: try again in a moment"
    if "draining" in states:
        return "the server is draining: it takes no new requests"
    return f"no replica answers ({', '.join(states) or 'none is configured'}): try again in a moment"


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _message(request: AnyRequest, request_id: str) -> Any:
    document = documents.request_to_document(request)
    cast("Any", document).id = request_id
    return document.to_protobuf()


def _unary_answer(endpoint: Endpoint, message: Any) -> Answer:
    check_header(message.header)
    if not message.data.docs.docs:
        raise InternalError("the model server gave an empty answer")
    return answer_of(cast("type[Answer]", endpoint.answer), message.data.docs.docs[0])


def _stream_answer(endpoint: Endpoint, message: Any) -> Answer:
    check_header(message.header)
    return answer_of(cast("type[Answer]", endpoint.event), message.document)
