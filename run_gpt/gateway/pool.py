"""The only way to the executors: the replica that suits a request, a deadline, cancellation, and a retry that is safe.

A failure becomes a RequestError here and nowhere else. A call is tried again, on another replica, only when the
connection failed or the replica refused it (Unavailable, QueueFull), and nothing of its answer had arrived; so no text
is ever sent twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import grpc

from run_gpt.api import documents
from run_gpt.api.answers import Answer
from run_gpt.api.schema import AnyRequest, Request
from run_gpt.errors import DeadlineExceeded, InternalError, QueueFull, RequestError, Unavailable
from run_gpt.gateway.adapters import AdapterChanges
from run_gpt.gateway.affinity import Affinity, choose, digests_of, prompt_text
from run_gpt.gateway.discovery import Resolve, resolve
from run_gpt.gateway.endpoints import Endpoint, endpoint_of
from run_gpt.gateway.members import Members
from run_gpt.gateway.messages import answer_of, check_header
from run_gpt.gateway.replica import Replica
from run_gpt.gateway.request_span import note_attempt

# The connection is gone. CANCELLED comes from the executor's side when its server stops (our own cancellation is an
# asyncio.CancelledError).
_NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
ATTEMPTS = 3
"""Replicas that may fail one request before it fails: it may be the request that breaks them."""
ADAPTER_SECONDS = 60.0
"""Longest that one replica may take to change an adapter."""


class ConnectionFailed(Unavailable):
    """The connection to a replica failed: the one failure after which a call may be tried again."""


class ReplicaPool:
    """The replicas at `addresses` ("host:port"; see Members). Start and close it on one event loop.

    `resolve`: how names are looked up.
    """

    def __init__(self, addresses: Sequence[str], resolve: Resolve = resolve):
        self.adapters = AdapterChanges(self._ask)
        self.members = Members(addresses, self.adapters.bring_up_to_date, resolve)
        self.affinity = Affinity()
        self.retries = 0
        """Calls that were made since another replica had failed or refused the request."""
        self._turn = 0
        self._calls: set[Any] = set()
        self._stopped: str | None = None

    async def start(self) -> None:
        """Watch the replicas from now on; a first look at each of a fixed address is over when this returns."""
        await self.members.start()

    async def close(self) -> None:
        """End the watchers and the connections."""
        await self.members.close()

    def stop(self, why: str) -> None:
        """End every running call, and refuse new ones, with Unavailable(why)."""
        self._stopped = why
        for call in list(self._calls):
            call.cancel()

    @property
    def watched(self) -> bool:
        """See Members."""
        return self.members.watched

    @property
    def replicas(self) -> list[Replica]:
        """All that are known, those that are leaving among them."""
        return list(self.members.replicas.values())

    @property
    def ready(self) -> list[Replica]:
        """The replicas that take requests."""
        return [replica for replica in self.members.replicas.values() if replica.takes_requests]

    @property
    def model(self) -> str | None:
        """The served model's name, once a replica has said it."""
        return next((replica.model for replica in self.replicas if replica.status), None)

    @property
    def context_length(self) -> int | None:
        """Tokens that the served model's context holds, once a replica has said it."""
        return next((replica.status.context_length for replica in self.replicas if replica.status), None)

    def check_ready(self) -> None:
        """Raises Unavailable, which says why, if no replica is ready."""
        if not any(replica.takes_requests for replica in self.members.replicas.values()):
            raise self._not_ready()

    def _not_ready(self) -> Unavailable:
        return Unavailable(_why_not([replica.state for replica in self.replicas], self.members.unresolved))

    async def _ask(self, replica: Replica, request: AnyRequest) -> Answer:
        """The answer of this replica and no other. Raises a RequestError."""
        endpoint, request_id = endpoint_of(request, stream=False), f"rungpt-{endpoint_of(request, stream=False).path}"
        call = replica.unary(endpoint.path, _message(request, request_id), request_id, ADAPTER_SECONDS)
        replica.in_flight += 1  # one that is leaving stays until this is over
        try:
            return _unary_answer(endpoint, await call)
        except grpc.aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or "", ADAPTER_SECONDS) from error
        finally:
            replica.in_flight -= 1

    async def answer(self, request: AnyRequest, request_id: str, timeout: float) -> Answer:
        """The answer to `request` within `timeout` seconds. Raises a RequestError."""
        endpoint, document = endpoint_of(request, stream=False), _message(request, request_id)
        deadline, tries = time.monotonic() + timeout, self._tries(request)
        while True:
            replica = self._take(tries)
            call = self._begun(replica.unary(endpoint.path, document, request_id, _left(deadline)))
            try:
                return _unary_answer(endpoint, await call)
            except (Unavailable, QueueFull) as refusal:
                if not await tries.after_refusal(refusal, replica):
                    raise
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                failure = self._failure(error, replica, timeout)
                if not tries.after(failure):
                    raise failure from error
            finally:
                self._release(replica, call)

    async def stream(self, request: Request, request_id: str, timeout: float) -> AsyncIterator[Answer]:
        """The events of the answer, complete or ended by a RequestError. Closing the iterator cancels the call."""
        endpoint, document = endpoint_of(request, stream=True), _message(request, request_id)
        deadline, tries = time.monotonic() + timeout, self._tries(request)
        progress = Progress(request.sequences)
        while True:
            replica = self._take(tries)
            call = self._begun(replica.stream(endpoint.path, document, request_id, _left(deadline)))
            try:
                async for message in call:
                    answer = _stream_answer(endpoint, message)
                    progress.add(answer)
                    yield answer
                if not progress.complete:
                    raise InternalError("the model server ended the answer before it was complete")
                return
            except (Unavailable, QueueFull) as refusal:
                if progress.begun or not await tries.after_refusal(refusal, replica):
                    raise
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                failure = self._failure(error, replica, timeout)
                if progress.complete:
                    return
                if progress.begun or not tries.after(failure):
                    raise failure from error
            finally:
                self._release(replica, call)

    def _tries(self, request: AnyRequest) -> "Tries":
        """Of one replica there is no choice, and nothing to remember."""
        return Tries(digests_of(prompt_text(request)) if len(self.members.replicas) > 1 else [])

    def _take(self, tries: "Tries") -> Replica:
        if self._stopped:
            raise Unavailable(self._stopped)
        candidates = [replica for replica in self.ready if replica not in tries.replicas]
        if not candidates:
            raise tries.refusal or self._not_ready()
        replica = choose(candidates, self.affinity.matched(tries.digests), self._turn)
        self._turn += 1
        self.retries += bool(tries.replicas)
        note_attempt(replica, tries.failure)
        self.affinity.note(tries.digests, replica.cache)
        tries.replicas.add(replica)
        replica.in_flight += 1
        return replica

    def _begun(self, call: Any) -> Any:
        self._calls.add(call)
        return call

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


class Tries:
    """The replicas that one request was sent to, each once at most, and whether it may go to another."""

    def __init__(self, digests: Sequence[int]):
        self.digests = digests
        """Of the beginnings of its prompt."""
        self.replicas: set[Replica] = set()
        self.refusal: RequestError | None = None
        """What the last one said that took nothing."""
        self.failure: RequestError | None = None
        """Why the last one is not the last."""
        self._failures = 0

    def after(self, failure: RequestError) -> bool:
        """Whether another replica may be tried after this failure."""
        self._failures += 1
        self.failure = failure
        return isinstance(failure, ConnectionFailed) and self._failures < ATTEMPTS

    async def after_refusal(self, refusal: RequestError, replica: Replica) -> bool:
        """The same after a `refusal` by `replica`, which is asked for its state, and gets no more unless it is ready.

        One that is draining is no failure: in an update of many, several may be, one after the other. One whose queue
        is full may be so by another gateway's requests, or by those of many sequences, while others are idle.
        """
        self.refusal = self.failure = refusal
        state = await replica.state_now() if isinstance(refusal, Unavailable) else "ready"
        if state != "ready":
            replica.suspect(state)
        self._failures += state != "draining"
        return self._failures < ATTEMPTS


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


def error_of_status(code: Any, details: str, timeout: float) -> RequestError:
    """The error that a gRPC status from an executor stands for."""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the answer was not complete after {round(timeout, 2):g} s")
    if code in _NO_CONNECTION:
        return ConnectionFailed("the connection to the replica that answered this request failed")
    return InternalError(f"the model server failed: {details or code.name}")


def _why_not(states: Sequence[str], unresolved: Sequence[str]) -> str:
    if not states and unresolved:
        return f"no replica is known yet: waiting for {', '.join(unresolved)} to resolve"
    if {"unloaded", "loading"} & set(states) or ("connecting" in states and "lost" not in states):
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
