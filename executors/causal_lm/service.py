"""`ModelService`: an executor's handling of requests to its model, from Jina or from the inner wire."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from run_gpt.api.adapters import LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, Status
from run_gpt.api.long_parts import restored
from run_gpt.api.pieces import Head, Parts, Piece
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import Request
from run_gpt.config import AdminConfig
from run_gpt.errors import Forbidden, Unavailable
from run_gpt.executors.causal_lm.host import Host
from run_gpt.executors.causal_lm.spans import Spans
from run_gpt.local.sinks import PassingSink, WaitingSink, native_events

log = logging.getLogger(__name__)

NO_TRACE: Mapping[str, str] = {}


class ModelService:
    """Service that admits requests to the model of `host`, answers them, and drains. Use it on one event loop.

    `trace` of its calls: headers of the trace that a request belongs to; without them, the context of the task.
    """

    def __init__(self, host: Host, spans: Spans, admin: AdminConfig):
        self.host = host
        self._admin = admin
        self._spans = spans
        self._running, self._idle, self._draining = 0, asyncio.Event(), False
        self._idle.set()
        self._started = time.time()
        self._numbers = itertools.count(1)

    async def answer(self, request: AnyRequest) -> Answer:
        """Answer a request as a whole. Raises a RequestError."""
        answer, parts = await self.answer_in_parts(request)
        return await asyncio.to_thread(restored, request, answer, parts) if parts else answer

    async def answer_in_parts(
        self, request: AnyRequest, trace: Mapping[str, str] = NO_TRACE
    ) -> tuple[Answer, list[Parts]]:
        """Answer a request as a whole; log-probabilities and vectors are parts beside the answer (see api.long_parts).

        Raises a RequestError.
        """
        if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest) and not self._admin.runtime_adapters:
            raise Forbidden("adapters cannot be changed here: start the server with --runtime-adapters")
        with self._admitted():
            model = self.host.model
            with self._spans.of(request, model.name, trace) as span:
                answer, parts = await model._answer_in_parts(request, on_timing=span.took)
                span.answered(answer)
                return answer, parts

    async def check(self, requests: Sequence[Request]) -> None:
        """Raise the RequestError of the first request whose prompt cannot be answered."""
        with self._admitted():
            await self.host.model._check(requests)

    async def stream(
        self, request: Request, put: Callable[[Head | Piece], None], trace: Mapping[str, str] = NO_TRACE
    ) -> None:
        """Answer a request piece by piece; returns when `put` has had the last one. Raises a RequestError."""
        sink = PassingSink(put)
        with self._admitted():
            model = self.host.model
            with self._spans.of(request, model.name, trace) as span:
                async with model._streaming(request, sink, on_timing=span.took) as writer:
                    try:
                        await sink.ended
                    finally:
                        span.streamed(writer)

    async def events(self, request: Request) -> AsyncIterator[Answer]:
        """Answer a request event by event. Raises a RequestError; closing the iterator ends the request."""
        sink = WaitingSink()
        running = asyncio.ensure_future(self.stream(request, sink.put))
        running.add_done_callback(lambda task: sink.end(None))
        try:
            async for event in native_events(request, sink):
                yield event
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def status(self) -> Status:
        """Return the status of the model and its engine."""
        now = {"started": self._started, "number": next(self._numbers)}
        status = self.host.status().model_copy(update=now)
        if self._draining and status.state == "ready":
            status = status.model_copy(update={"state": "draining"})
        return status

    async def load(self) -> AsyncIterator[Status]:
        """Load the model; yield the progress, and at last the result."""
        async for _ in self.host.load():
            yield self.status()

    async def unload(self) -> Status:
        """Free the model's memory. Raises Unavailable while requests run."""
        if self._running:
            raise Unavailable(f"the model {self.host.name} answers {self._running} requests")
        await self.host.unload()
        return self.status()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, give running ones `seconds` to finish, then end the engine; the rest gets Unavailable.

        `status` says `draining` meanwhile. This counts the requests of the executor's callers, not the engine's: the
        texts of one may reach the engine one after the other, and the engine would be idle between them.
        """
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests did not finish in the %g s that they had", self._running, seconds)
        with ThreadPoolExecutor(1) as thread:  # the loop's own threads may all wait for the engine
            await asyncio.get_running_loop().run_in_executor(thread, self.host.close)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a request until it ends. Raises Unavailable in a drain."""
        if self._draining:
            raise Unavailable("this replica is draining: ask another one, or try again later")
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
