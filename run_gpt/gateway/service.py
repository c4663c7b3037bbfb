"""The handling of a checked request from either port: count it, limit its time, refuse it in a drain, pass it on."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from run_gpt.api.answers import Answer, Body
from run_gpt.api.models import LoadModelRequest, UnloadModelRequest
from run_gpt.api.openai.base import OpenAIRequest
from run_gpt.api.openai.models import ListModelsRequest, ModelList, RetrieveModelRequest
from run_gpt.api.schema import AnyRequest, Request
from run_gpt.api.together import together
from run_gpt.config import GatewayConfig
from run_gpt.errors import Forbidden, RequestError, Unavailable
from run_gpt.gateway.adapters import Change
from run_gpt.gateway.events import Events, ModelEvents, TextEvents
from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.models import Models
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.record import Record, current, new_request_id, note_error, note_user
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.gateway.streams import Streams, places_of

if TYPE_CHECKING:
    from run_gpt.gateway.tracing import Tracing

FLUSH_SECONDS = 2.0
"""Time that the ports get to write the last event of a request that the drain ended."""


class Service:
    """The requests of one gateway, for the models of `pools`, the default one first."""

    def __init__(self, pools: Sequence[ReplicaPool], config: GatewayConfig, tracing: "Tracing | None" = None):
        self.models = Models(pools, config.memory_budget)
        self.config = config
        self.tracing = tracing
        self.in_flight = 0
        self._held = 0
        """Number of requests in flight, and of answers that ports are writing."""
        self.draining = False
        self.metrics = GatewayMetrics(self.models, lambda: self.in_flight)
        self._idle = asyncio.Event()
        self._idle.set()

    def count(self, record: Record, status: str) -> None:
        """Count a request that has ended. `status`: HTTP's number, or gRPC's name."""
        self.metrics.count(record, status)
        if self.tracing is not None:
            self.tracing.end(record, status)

    async def answer(self, request: AnyRequest, timeout: float | None = None) -> Body:
        """Return the whole answer, within `timeout` seconds if that is less than the server's own limit.

        Raises a RequestError.
        """
        self.check(request)
        limit = self._limit(timeout)
        with self.running():
            if isinstance(request, ListModelsRequest):
                return ModelList(data=[hosted.card() for hosted in self.models.all if hosted.name])
            hosted = self.models.named(request.model)
            if isinstance(request, RetrieveModelRequest):
                return hosted.card()
            if isinstance(request, UnloadModelRequest):
                return await self.models.unload(hosted, limit)
            deadline = time.monotonic() + limit
            async with self.models.held(hosted, limit) as pool:
                if isinstance(request, Change):
                    return await pool.adapters.make(request, lambda: pool.ready)
                if isinstance(request, OpenAIRequest):
                    return await self._translated(request, pool, deadline)
                return await pool.answer(request, _request_id(), deadline - time.monotonic())

    @asynccontextmanager
    async def stream(self, request: AnyRequest, timeout: float | None = None) -> AsyncIterator[Events]:
        """Yield the events of the answer, until the block is left. Raises a RequestError, as their methods do."""
        self.check(request)
        hosted, limit = self.models.named(request.model), self._limit(timeout)
        with self.running():
            if isinstance(request, LoadModelRequest):
                async with aclosing(cast("Any", self.models.load(hosted, limit))) as states:
                    yield ModelEvents(states)
                return
            deadline = time.monotonic() + limit
            with _named_as_in(request):
                async with self.models.held(hosted, limit) as pool:
                    natives = request.natives() if isinstance(request, OpenAIRequest) else [request]
                    streams = Streams(pool, cast("Sequence[Request]", natives), deadline, _request_id)
                    try:
                        yield TextEvents(streams, StreamWriter(cast("Any", request), cast("Any", natives)))
                    finally:
                        await streams.close()

    async def _translated(self, request: OpenAIRequest, pool: ReplicaPool, deadline: float) -> Body:
        """Return the answer in another API's form, made of the answers to the request's native requests."""
        with _named_as_in(request):
            natives = request.natives()
            places = places_of(natives)

            async def one(native: AnyRequest) -> Answer:
                async with places:
                    return await pool.answer(native, _request_id(), deadline - time.monotonic())

            return request.join(await together([one(native) for native in natives]))

    def check(self, request: AnyRequest) -> None:
        """Raise Unavailable, ModelNotFound or Forbidden for a request that cannot be served now."""
        if isinstance(request, OpenAIRequest):
            note_user(request.user)
        if isinstance(request, Change) and not self.config.runtime_adapters:
            raise Forbidden("adapters cannot be changed here: start the server with --runtime-adapters")
        if self.draining:
            raise Unavailable("the server is draining: it takes no new requests")
        if not isinstance(request, ListModelsRequest | RetrieveModelRequest):
            self.models.check(request.model)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as in flight."""
        self.in_flight += 1
        try:
            with self.writing():
                yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let a drain wait for the rest of an answer that a port is writing."""
        self._held += 1
        self._idle.clear()
        try:
            yield
        except Exception as error:
            note_error(error)
            raise
        finally:
            self._held -= 1
            if self._held == 0:
                self._idle.set()

    @property
    def ready(self) -> bool:
        """True when a request would be taken now."""
        return not self.draining and self.models.watched and self.models.ready

    def status(self) -> dict[str, Any]:
        """Return the answer of `/ready`."""
        return {
            "ready": self.ready,
            "model": self.models.all[0].name or None,
            "models": {hosted.name: hosted.state for hosted in self.models.all if hosted.name},
            "draining": self.draining,
            "in_flight": self.in_flight,
            "replicas": {
                "ready": sum(replica.takes_requests for replica in self.models.replicas),
                "total": len(self.models.replicas),
                "each": [replica.describe() for replica in self.models.replicas],
            },
        }

    async def drain(self) -> None:
        """Refuse new requests; give the running ones `drain_seconds`, then end them with Unavailable."""
        self.draining = True
        if await self._wait_idle(self.config.drain_seconds):
            return
        self.models.stop("the server stops: this request did not end in time")
        await self._wait_idle(FLUSH_SECONDS)

    async def _wait_idle(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _limit(self, timeout: float | None) -> float:
        limit = self.config.request_timeout
        return limit if timeout is None else min(limit, timeout)


@contextmanager
def _named_as_in(request: AnyRequest) -> Iterator[None]:
    """Translate errors that name a native field: they name the request's own field for it."""
    try:
        yield
    except RequestError as error:
        names = request.NATIVE_NAMES if isinstance(request, OpenAIRequest) else {}
        if (native := error.param or "") in names:
            error.param = names[native]
            if error.message.startswith(native):
                error.message = error.param + error.message.removeprefix(native)
                error.args = (error.message,)
        raise


def _request_id() -> str:
    """Return the id of the record's next request: first the record's own id, then new ones."""
    if (record := current.get()) is None:
        return new_request_id()
    record.requests += 1
    return record.request_id if record.requests == 1 else new_request_id()
