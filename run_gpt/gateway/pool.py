"""The only way to the executors: choice of a replica, deadline, cancellation, and safe retries.

A request is tried again, on another replica, only when the connection failed or the replica refused it (Unavailable,
QueueFull), and no part of the answer had arrived; so no text is ever sent twice.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from pydantic import ValidationError

from run_gpt.api.answers import Answer
from run_gpt.api.endpoints import Endpoint, endpoint_of
from run_gpt.api.long_parts import restored
from run_gpt.api.pieces import Whole
from run_gpt.api.request import AnyRequest
from run_gpt.errors import DeadlineExceeded, InternalError, QueueFull, RequestError, Unavailable
from run_gpt.gateway.adapters import AdapterChanges
from run_gpt.gateway.affinity import Affinity, choose, digests_of, prompt_text
from run_gpt.gateway.discovery import Resolve, resolve
from run_gpt.gateway.members import Members
from run_gpt.gateway.replica import Replica
from run_gpt.gateway.request_span import note_attempt
from run_gpt.link.calling import ConnectionFailed, Exchange, OtherVersion
from run_gpt.process import tenants

ATTEMPTS = 3
"""Number of replicas that may fail on one request before it fails: the request itself may be the cause."""
ADAPTER_SECONDS = 60.0
"""Longest time that one replica may take to change an adapter."""


class ReplicaPool:
    """The replicas at `addresses` ("host:port"; see Members). Start and close it on one event loop.

    `resolve` looks names up.
    """

    def __init__(self, addresses: Sequence[str], resolve: Resolve = resolve):
        self.adapters = AdapterChanges(self._ask)
        self.members = Members(addresses, self.adapters.bring_up_to_date, resolve)
        self.affinity = Affinity()
        self.retries = 0
        """Number of calls that were repeated because another replica had failed or refused the request."""
        self._turn = 0
        self._exchanges: set[Exchange] = set()
        self._stopped: str | None = None

    async def start(self) -> None:
        """Start watching the replicas. Each one at a fixed address has been probed once when this returns."""
        await self.members.start()

    async def close(self) -> None:
        """End the watchers and the connections."""
        await self.members.close()

    def stop(self, why: str) -> None:
        """End every running call, and refuse new ones, with Unavailable(why)."""
        self._stopped = why
        for exchange in list(self._exchanges):
            exchange.fail(Unavailable(why))

    @property
    def watched(self) -> bool:
        """True when the watchers run; see Members."""
        return self.members.watched

    @property
    def replicas(self) -> list[Replica]:
        """All known replicas, including those that are leaving."""
        return list(self.members.replicas.values())

    @property
    def ready(self) -> list[Replica]:
        """Replicas that take requests, some of them only where no other does (see `sure`)."""
        return [replica for replica in self.members.replicas.values() if replica.takes_requests]

    @property
    def sure(self) -> list[Replica]:
        """Replicas that take requests and seem to answer them."""
        return [replica for replica in self.ready if replica.state == "ready"]

    @property
    def model(self) -> str | None:
        """Name of the served model, once a replica has reported it."""
        return next((replica.model for replica in self.replicas if replica.status), None)

    @property
    def context_length(self) -> int | None:
        """Context length of the served model in tokens, once a replica has reported it."""
        return next((replica.status.context_length for replica in self.replicas if replica.status), None)

    def check_ready(self) -> None:
        """Raise Unavailable, with the reason, if no replica is ready."""
        if not any(replica.takes_requests for replica in self.members.replicas.values()):
            raise self._not_ready()

    def _not_ready(self) -> Unavailable:
        return Unavailable(_why_not([replica.state for replica in self.replicas], self.members.unresolved))

    async def _ask(self, replica: Replica, request: AnyRequest) -> Answer:
        """Return the answer of this replica and no other. Raises a RequestError."""
        endpoint = endpoint_of(request, stream=False)
        replica.in_flight += 1  # a leaving replica stays until this is over
        try:
            body = await replica.ask(endpoint.path, _body(request), timeout=ADAPTER_SECONDS)
            return read_answer(request, body)
        finally:
            replica.in_flight -= 1

    async def answer(self, request: AnyRequest, request_id: str, timeout: float) -> Answer:
        """Return the answer to `request` within `timeout` seconds, its parts included. Raises a RequestError."""
        whole = await self.whole(request, request_id, timeout)
        return restored(request, read_answer(request, whole.json), whole.parts)

    async def whole(self, request: AnyRequest, request_id: str, timeout: float) -> Whole:
        """Return the answer to `request` within `timeout` seconds, as it came. Raises a RequestError."""
        endpoint = endpoint_of(request, stream=False)
        exchange = await self.begin(request, request_id, timeout, asyncio.Event(), endpoint)
        try:
            await asyncio.wait((exchange.ended,))
        finally:
            exchange.close()
        if exchange.error is not None:
            raise exchange.error
        match exchange.take():
            case [bytes() as json]:
                return Whole(json)
            case [Whole() as first, *more]:
                for other in cast("list[Whole]", more):
                    for own, added in zip(first.parts, other.parts, strict=True):
                        own += added
                return first
        raise InternalError("the model server gave no whole answer")

    async def begin(
        self, request: AnyRequest, request_id: str, timeout: float, arrived: asyncio.Event, endpoint: Endpoint
    ) -> Exchange:
        """Send a request, and return when a part of its answer has arrived. The caller reads and closes the exchange.

        The answer is complete within `timeout` seconds, or ends with an error. Raises the RequestError of a request
        that no replica has begun to answer.
        """
        deadline, tries, body = time.monotonic() + timeout, self._tries(request), _body(request)
        while True:
            replica = self._take(tries)
            try:
                return await self._begin(replica, endpoint.path, body, request_id, deadline, arrived)
            except (ConnectionFailed, OtherVersion) as failure:
                if not tries.after(failure):
                    raise
            except (Unavailable, QueueFull) as refusal:
                if self._stopped or not await tries.after_refusal(refusal, replica):
                    raise

    async def _begin(
        self, replica: Replica, path: str, body: bytes, request_id: str, deadline: float, arrived: asyncio.Event
    ) -> Exchange:
        """Send a request to one replica, which counts it as in flight; return when a part of its answer has arrived."""
        left = max(0.001, deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                exchange = await replica.start(path, body, request_id=request_id, arrived=arrived)
        except BaseException as error:
            self._released(replica, error)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"no replica answered within {round(left, 2):g} s") from None
            raise
        exchange.ended.add_done_callback(lambda _: self._over(exchange, replica))
        exchange.limit(deadline - time.monotonic())
        self._exchanges.add(exchange)
        if self._stopped:  # stopped while this was connecting
            exchange.fail(Unavailable(self._stopped))
        try:
            while not (exchange.has_news or exchange.over):
                arrived.clear()
                await arrived.wait()
        except BaseException:
            exchange.close()
            raise
        if exchange.error is not None and not exchange.has_news:
            raise exchange.error
        return exchange

    def _over(self, exchange: Exchange, replica: Replica) -> None:
        self._exchanges.discard(exchange)
        self._released(replica, exchange.error)

    @staticmethod
    def _released(replica: Replica, error: BaseException | None) -> None:
        """Count a request as ended, and suspect a replica whose connection failed."""
        replica.in_flight -= 1
        if isinstance(error, ConnectionFailed):
            replica.suspect()

    def _tries(self, request: AnyRequest) -> "Tries":
        """Return the tries of a request. With a single replica no digests are needed: there is no choice."""
        if len(self.members.replicas) <= 1:
            return Tries([])
        space = tenants.space(getattr(request, "cache_salt", None))
        return Tries(digests_of(prompt_text(request), space, getattr(request, "prompt_cache_key", None)))

    def _take(self, tries: "Tries") -> Replica:
        if self._stopped:
            raise Unavailable(self._stopped)
        candidates = [replica for replica in self.ready if replica not in tries.replicas]
        if not candidates:
            raise tries.refusal or self._not_ready()
        candidates = [replica for replica in candidates if replica.state == "ready"] or candidates
        replica = choose(candidates, self.affinity.matched(tries.digests), self._turn)
        self._turn += 1
        self.retries += bool(tries.replicas)
        note_attempt(replica, tries.failure)
        self.affinity.note(tries.digests, replica.cache)
        tries.replicas.add(replica)
        replica.in_flight += 1
        return replica


class Tries:
    """The replicas that one request was sent to, each at most once, and the decision about another try."""

    def __init__(self, digests: Sequence[int]):
        self.digests = digests
        """Digests of the prefixes of its prompt."""
        self.replicas: set[Replica] = set()
        self.refusal: RequestError | None = None
        """Error of the last replica that refused the request."""
        self.failure: RequestError | None = None
        """Error of the latest try that failed or was refused."""
        self._failures = 0

    def after(self, failure: RequestError) -> bool:
        """Return True when another replica may be tried after this failure."""
        self._failures += 1
        self.failure = failure
        return isinstance(failure, ConnectionFailed) and self._failures < ATTEMPTS

    async def after_refusal(self, refusal: RequestError, replica: Replica) -> bool:
        """Return the same after a `refusal` by `replica`. Ask its state; unless it is ready, it gets no more requests.

        A draining replica is no failure: in an update of many, several may drain, one after the other. The queue of one
        may be full of another gateway's requests, or of requests with many sequences, while other replicas are idle.
        """
        self.refusal = self.failure = refusal
        state = await replica.state_now() if isinstance(refusal, Unavailable) else "ready"
        self._failures += state != "draining"
        return self._failures < ATTEMPTS


def _why_not(states: Sequence[str], unresolved: Sequence[str]) -> str:
    if not states and unresolved:
        return f"no replica is known yet: waiting for {', '.join(unresolved)} to resolve"
    if {"unloaded", "loading"} & set(states) or ("connecting" in states and "lost" not in states):
        return "the model is loading: try again in a moment"
    if set(states) == {"incompatible"}:
        return "the replicas have another version, or another token, than this gateway: its log names them"
    if "draining" in states:
        return "the server is draining: it takes no new requests"
    return f"no replica answers ({', '.join(states) or 'none is configured'}): try again in a moment"


def _body(request: AnyRequest) -> bytes:
    return request.model_dump_json(exclude_none=True).encode()


def read_answer(request: AnyRequest, body: bytes) -> Answer:
    """Return the answer to a native request that an executor wrote. Raises InternalError for anything else."""
    try:
        return cast("Answer", endpoint_of(request, stream=False).body(stream=False).model_validate_json(body))
    except ValidationError as problem:
        raise InternalError(f"the model server gave a malformed answer: {problem.errors()[0]['msg']}") from problem
