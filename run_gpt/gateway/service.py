"""What both doors do with a checked request: count it, bound its time, refuse it while draining, pass it on."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

from run_gpt.api.answers import Answer, Body
from run_gpt.api.openai.base import OpenAIRequest
from run_gpt.api.openai.models import ListModelsRequest, ModelCard, ModelList, RetrieveModelRequest
from run_gpt.api.schema import AnyRequest, Request
from run_gpt.api.together import merged, together
from run_gpt.config import GatewayConfig
from run_gpt.errors import Forbidden, ModelNotFound, RequestError, Unavailable
from run_gpt.gateway.adapters import Change
from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.record import current, new_request_id, note_error, note_user

FLUSH_SECONDS = 2.0
"""Time that the doors get to write the last event of a request that the drain ended."""
SEQUENCES_AT_ONCE = 32
"""Of one request that stands for several: more would take the queue from others."""


class Service:
    """The requests of one gateway."""

    def __init__(self, pool: ReplicaPool, config: GatewayConfig):
        self.pool = pool
        self.config = config
        self.in_flight = 0
        self._held = 0
        """Requests in flight, and what doors are writing of them."""
        self.draining = False
        self.metrics = GatewayMetrics(pool, lambda: self.in_flight)
        self._started = int(time.time())
        self._idle = asyncio.Event()
        self._idle.set()

    async def answer(self, request: AnyRequest, timeout: float | None = None) -> Body:
        """The whole answer, within `timeout` seconds if that is less than the server's own limit.

        Raises a RequestError.
        """
        self.check(request)
        with self.running():
            if isinstance(request, ListModelsRequest | RetrieveModelRequest):
                return self._models(request)
            if isinstance(request, Change):
                return await self.pool.adapters.make(request, lambda: self.pool.ready)
            if isinstance(request, OpenAIRequest):
                return await self._translated(request, self._limit(timeout))
            return await self.pool.answer(request, _request_id(), self._limit(timeout))

    async def stream(self, request: AnyRequest, timeout: float | None = None) -> AsyncIterator[Body]:
        """The events of the answer. Raises a RequestError; closing the iterator cancels the request."""
        self.check(request)
        limit = self._limit(timeout)
        events: Any = (
            self._translated_stream(request, limit)
            if isinstance(request, OpenAIRequest)
            else self.pool.stream(cast("Request", request), _request_id(), limit)
        )
        with self.running():
            async with aclosing(events):
                async for event in events:
                    yield event

    async def _translated(self, request: OpenAIRequest, limit: float) -> Body:
        """The answer in another API's form, of those to the native requests that it stands for."""
        with _named_as_in(request):
            natives = request.natives()
            places, deadline = _places(natives), time.monotonic() + limit

            async def one(native: AnyRequest) -> Answer:
                async with places:
                    return await self.pool.answer(native, _request_id(), deadline - time.monotonic())

            return request.join(await together([one(native) for native in natives]))

    async def _translated_stream(self, request: OpenAIRequest, limit: float) -> AsyncIterator[Body]:
        with _named_as_in(request):
            natives, writer = cast("Sequence[Request]", request.natives()), request.writer()
            places, deadline = _places(natives), time.monotonic() + limit

            async def one(native: Request) -> AsyncIterator[Answer]:
                async with places:
                    stream: Any = self.pool.stream(native, _request_id(), deadline - time.monotonic())
                    async with aclosing(stream) as events:
                        async for event in events:
                            yield event

            async with aclosing(cast("Any", merged([one(native) for native in natives]))) as events:
                async for which, event in events:
                    for body in writer.events(which, event):
                        yield body
            for body in writer.end():
                yield body

    def _models(self, request: AnyRequest) -> ModelList | ModelCard:
        name = self.pool.model
        card = ModelCard(id=name or "", created=self._started, max_model_len=self.pool.context_length)
        return card if isinstance(request, RetrieveModelRequest) else ModelList(data=[card] if name else [])

    def check(self, request: AnyRequest) -> None:
        """Raises Unavailable, ModelNotFound or Forbidden for a request that cannot be served now."""
        if isinstance(request, OpenAIRequest):
            note_user(request.user)
        if isinstance(request, Change) and not self.config.runtime_adapters:
            raise Forbidden("adapters cannot be changed here: start the server with --runtime-adapters")
        if self.draining:
            raise Unavailable("the server is draining: it takes no new requests")
        if not isinstance(request, ListModelsRequest | RetrieveModelRequest):
            self.pool.check_ready()
        if request.model is not None and request.model != self.pool.model:
            raise ModelNotFound(
                f"model {request.model!r} is not served here: this server has {self.pool.model!r}", param="model"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts a request as in flight."""
        self.in_flight += 1
        try:
            with self.writing():
                yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lets a drain wait for what a door has still to write."""
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
        """Whether a request would be taken now."""
        return not self.draining and self.pool.watched and bool(self.pool.ready)

    def status(self) -> dict[str, Any]:
        """What `/ready` says."""
        return {
            "ready": self.ready,
            "model": self.pool.model,
            "draining": self.draining,
            "in_flight": self.in_flight,
            "replicas": {
                "ready": len(self.pool.ready),
                "total": len(self.pool.replicas),
                "each": [replica.describe() for replica in self.pool.replicas],
            },
        }

    async def drain(self) -> None:
        """Refuse new requests; give the running ones `drain_seconds`, then end them with Unavailable."""
        self.draining = True
        if await self._wait_idle(self.config.drain_seconds):
            return
        self.pool.stop("the server stops: this request did not end in time")
        await self._wait_idle(FLUSH_SECONDS)

    async def _wait_idle(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _limit(self, timeout: float | None) -> float:
        limit = self.config.request_timeout
        return limit if timeout is None else min(limit, timeout)


def _places(natives: Sequence[AnyRequest]) -> asyncio.Semaphore:
    """How many of these run together."""
    first = natives[0]
    sequences = first.best_of or first.sequences if isinstance(first, Request) else 1
    return asyncio.Semaphore(max(1, SEQUENCES_AT_ONCE // sequences))


@contextmanager
def _named_as_in(request: OpenAIRequest) -> Iterator[None]:
    """Errors that name a native field name the field that the request has for it."""
    try:
        yield
    except RequestError as error:
        if (native := error.param or "") in request.NATIVE_NAMES:
            error.param = request.NATIVE_NAMES[native]
            if error.message.startswith(native):
                error.message = error.param + error.message.removeprefix(native)
                error.args = (error.message,)
        raise


def _request_id() -> str:
    """The id of one more request of the record: the record's own, and then new ones."""
    if (record := current.get()) is None:
        return new_request_id()
    record.requests += 1
    return record.request_id if record.requests == 1 else new_request_id()
