"""The handling of a checked request from either port: count it, limit its time, refuse it in a drain, pass it on."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from run_gpt.api.answers import Answer, Body
from run_gpt.api.endpoints import Handler, endpoint_of
from run_gpt.api.fields import Rules
from run_gpt.api.long_parts import Filled, Unread
from run_gpt.api.models import LoadModelRequest, UnloadModelRequest
from run_gpt.api.openai.models import ListModelsRequest, RetrieveModelRequest
from run_gpt.api.pieces import Whole
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import Request
from run_gpt.api.together import together
from run_gpt.api.translated import TranslatedRequest
from run_gpt.config import GatewayConfig
from run_gpt.errors import Forbidden, RequestError, Unavailable
from run_gpt.gateway.adapters import Change
from run_gpt.gateway.check import check_prompts
from run_gpt.gateway.events import Events, ModelEvents, TextEvents
from run_gpt.gateway.limits import Limits, note_answer
from run_gpt.gateway.long_answers import LONG_ANSWER, filled, passed_on
from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.models import Models
from run_gpt.gateway.pool import ReplicaPool, read_answer
from run_gpt.gateway.record import Record, current, current_rights, new_request_id, note_error, note_user
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.gateway.streams import Streams, turns_of

if TYPE_CHECKING:
    from run_gpt.gateway.tracing import Tracing

LIMITED = (Handler.MODEL, Handler.TRANSLATED)
"""Handlers whose requests count for the limits of their key."""
NAMED_BY_ADAPTER = (*LIMITED, Handler.LOAD_MODEL)
"""Handlers that take the name of an adapter as that of its model."""
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
        self.limits = Limits()
        self.metrics = GatewayMetrics(self.models, lambda: self.in_flight, self.limits)
        self._idle = asyncio.Event()
        self._idle.set()
        self._answers: Mapping[Handler, Callable[[Any, float], Awaitable[Body | Filled]]] = {
            Handler.MODEL: self._ask_model,
            Handler.ADAPTERS: self._change_adapters,
            Handler.TRANSLATED: self._translate,
            Handler.UNLOAD_MODEL: self._unload_model,
            Handler.LIST_MODELS: self._list_models,
            Handler.SHOW_MODEL: self._show_model,
        }
        """Handlers of whole answers: they take a request and its limit in seconds."""
        self._streams: Mapping[Handler, Callable[[Any, float, str | None], AbstractAsyncContextManager[Events]]] = {
            Handler.MODEL: self._stream_text,
            Handler.TRANSLATED: self._stream_text,
            Handler.LOAD_MODEL: self._load_model,
        }
        """Handlers of streams: they take a request, its limit, and the adapter that it called its model, if it did."""

    def count(self, record: Record, status: str) -> None:
        """Count a request that has ended. `status`: HTTP's number, or gRPC's name."""
        self.metrics.count(record, status)
        if self.tracing is not None:
            self.tracing.end(record, status)

    @property
    def rules(self) -> Rules:
        """Rules for fields of requests."""
        return "strict" if self.config.strict_fields else "lenient" if self.config.lenient_fields else "usual"

    async def answer(self, request: AnyRequest, timeout: float | None = None) -> Body | Filled:
        """Return the whole answer, within `timeout` seconds if that is less than the server's own limit.

        Raises a RequestError.
        """
        handler = endpoint_of(request, stream=False).handler
        called, request = request.model, self._checked(request, handler)
        limit, answer = self._limit(timeout), self._answers[handler]
        with self.running():
            if handler not in LIMITED:
                return await answer(request, limit)
            deadline = time.monotonic() + limit
            async with self.limits.use(current.get(), request, limit):
                body = await answer(request, deadline - time.monotonic())
            return body if request.model == called else await _renamed(body, called)

    def stream(self, request: AnyRequest, timeout: float | None = None) -> AbstractAsyncContextManager[Events]:
        """Return the events of the answer, which end with their block. Raises a RequestError, as do their methods."""
        handler = endpoint_of(request, stream=True).handler
        called, request = request.model, self._checked(request, handler)
        adapter = None if request.model == called else called
        return self._streams[handler](request, self._limit(timeout), adapter)

    def _checked(self, request: AnyRequest, handler: Handler) -> AnyRequest:
        """Check a request, and return it with its adapter, if it names one as its model. Raises a RequestError."""
        if handler in NAMED_BY_ADAPTER:
            request = self.models.resolved(request)
        self.check(request, handler)
        return request

    def check(self, request: AnyRequest, handler: Handler) -> None:
        """Raise Forbidden, Unavailable or ModelNotFound for a request that is not allowed, or cannot be served now."""
        if isinstance(request, TranslatedRequest):
            note_user(request.asker)
        current_rights().check(handler)
        if handler is Handler.ADAPTERS and not self.config.runtime_adapters:
            raise Forbidden("adapters cannot be changed here: start the server with --runtime-adapters")
        if self.draining:
            raise Unavailable("the server is draining: it takes no new requests")
        if handler not in (Handler.LIST_MODELS, Handler.SHOW_MODEL):
            self.models.check(request.model)

    async def _ask_model(self, request: AnyRequest, limit: float) -> Body | Filled:
        """Return the answer of one replica."""
        deadline = time.monotonic() + limit
        async with self.models.held(self.models.named(request.model), limit) as pool:
            whole = await pool.whole(request, _request_id(), deadline - time.monotonic())
            if len(whole.json) > LONG_ANSWER and not whole.parts:
                return await passed_on(request, whole.json)
            unread = Unread(request)
            return await filled(_noted(request, whole, unread), unread)

    async def _change_adapters(self, request: Change, limit: float) -> Body:
        async with self.models.held(self.models.named(request.model), limit) as pool:
            return await pool.adapters.make(request, lambda: pool.ready)

    async def _translate(self, request: TranslatedRequest, limit: float) -> Body | Filled:
        """Return the answer in OpenAI's form, made of the answers to the request's native requests."""
        deadline = time.monotonic() + limit
        async with self.models.held(self.models.named(request.model), limit) as pool:
            with _named_as_in(request):
                natives = request.natives()
                turns, unread = turns_of(natives), Unread(request)

                async def one(which: int, native: AnyRequest) -> Answer:
                    name = _request_id()
                    whole = await turns.whole(lambda: pool.whole(native, name, deadline - time.monotonic()))
                    return _noted(native, whole, unread, which)

                answers = await together([one(which, native) for which, native in enumerate(natives)])
                return await filled(request.join(answers), unread)

    async def _unload_model(self, request: UnloadModelRequest, limit: float) -> Body:
        return await self.models.unload(self.models.named(request.model), limit)

    async def _list_models(self, request: ListModelsRequest, limit: float) -> Body:
        models = [hosted.card(name) for hosted in self.models.all for name in hosted.names]
        return request.listed(models + [hosted.card(name) for name, hosted in self.models.adapters.items()])

    async def _show_model(self, request: RetrieveModelRequest, limit: float) -> Body:
        return request.described(self.models.shown(request.model).card(request.model))

    @asynccontextmanager
    async def _stream_text(self, request: AnyRequest, limit: float, adapter: str | None) -> AsyncIterator[Events]:
        """Yield the events of a text: of the request itself, or of an OpenAI request's native ones."""
        deadline = time.monotonic() + limit
        with self.running(), _named_as_in(request):
            async with (
                self.limits.use(current.get(), request, limit) as use,
                self.models.held(self.models.named(request.model), deadline - time.monotonic()) as pool,
            ):
                natives = request.natives() if isinstance(request, TranslatedRequest) else [request]
                await check_prompts(pool, natives, deadline)
                streams = Streams(pool, cast("Sequence[Request]", natives), deadline, _request_id)
                writer = StreamWriter(cast("Any", request), cast("Any", natives), adapter)
                try:
                    yield TextEvents(streams, writer)
                finally:
                    use.tokens = writer.tokens + streams.unread_tokens()
                    await streams.close()

    @asynccontextmanager
    async def _load_model(self, request: LoadModelRequest, limit: float, adapter: str | None) -> AsyncIterator[Events]:
        with self.running():
            async with aclosing(cast("Any", self.models.load(self.models.named(request.model), limit))) as states:
                yield ModelEvents(states)

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

    def status(self, *, to_stranger: bool = False) -> dict[str, Any]:
        """Return the answer of `/ready`; a stranger does not get what there is to know of each replica."""
        each = {} if to_stranger else {"each": [replica.describe() for replica in self.models.replicas]}
        return {
            "ready": self.ready,
            "model": self.models.all[0].name or None,
            "models": {hosted.name: hosted.state for hosted in self.models.all if hosted.name},
            "draining": self.draining,
            "in_flight": self.in_flight,
            "replicas": {
                "ready": sum(len(hosted.pool.sure) for hosted in self.models.all),
                "total": len(self.models.replicas),
                **each,
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


def _noted(request: AnyRequest, whole: Whole, unread: Unread, which: int = 0) -> Answer:
    """Return the answer to native request number `which`, with marks for its parts, and count its tokens."""
    answer = read_answer(request, whole.json)
    note_answer(answer)
    unread.take(which, answer, whole.parts)
    return answer


@contextmanager
def _named_as_in(request: AnyRequest) -> Iterator[None]:
    """Translate errors that name a native field: they name the request's own field for it."""
    try:
        yield
    except RequestError as error:
        names = request.NATIVE_NAMES if isinstance(request, TranslatedRequest) else {}
        native = re.split(r"[.\[]", error.param or "", maxsplit=1)[0]
        if error.param is not None and native in names:
            error.param = names[native] + error.param.removeprefix(native)
            if error.message.startswith(native):
                error.message = names[native] + error.message.removeprefix(native)
                error.args = (error.message,)
        raise


def _request_id() -> str:
    """Return the id of the record's next request: first the record's own id, then new ones."""
    if (record := current.get()) is None:
        return new_request_id()
    record.requests += 1
    return record.request_id if record.requests == 1 else new_request_id()


async def _renamed(body: Body | Filled, model: str | None) -> Body | Filled:
    """Return an answer with the name that its request has for the model; a long one is read in a thread."""
    if not isinstance(body, Filled):
        return body.model_copy(update={"model": model})
    renamed = await asyncio.to_thread(lambda: body.read().model_copy(update={"model": model}).to_json())
    return Filled(body.kind, renamed if isinstance(renamed, bytes) else renamed.encode())
