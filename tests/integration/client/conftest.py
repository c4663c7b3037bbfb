"""The gateway's two real ports over a scripted pool, in a thread of this process, without an executor or a model."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import uvicorn

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import answers, schema
from run_gpt.api.endpoints import Endpoint
from run_gpt.api.pieces import Head, Piece, Whole
from run_gpt.config import GatewayConfig
from run_gpt.errors import error_from_dict
from run_gpt.gateway.http import build_app
from run_gpt.gateway.legacy import LegacyInterceptor
from run_gpt.gateway.rpc import Servicer
from run_gpt.gateway.service import Service
from run_gpt.link.calling import Exchange

MODEL = "scripted"
SECONDS = 20


class ScriptedPool:
    """Stand-in for the replica pool. The prompt decides what it does:

    "error {json}" fails with that error, "late {json}" fails after two events; "wait" never ends; "stop short" ends a
    stream too early; "bug" raises an unexpected exception; three requests "meet" wait for each other; any other prompt
    is the answer, letter by letter.
    """

    model = MODEL
    watched = True
    context_length = 2048
    adapters = SimpleNamespace(applied=list)
    replicas = ready = (SimpleNamespace(describe=lambda: {}, state="ready", status=None),)

    def __init__(self) -> None:
        self.requests: list[schema.Request] = []
        self.waiting = threading.Event()
        self.cancelled = threading.Event()
        self.meeting = asyncio.Barrier(3)

    def check_ready(self) -> None:
        """Do nothing: this pool is always ready."""

    async def whole(self, request: schema.Request, request_id: str, limit: float) -> Whole:
        return Whole((await self._answer(request)).to_json().encode())

    async def _answer(self, request: schema.Request) -> answers.Answer:
        prompt = await self._begin(request)
        text = prompt.removeprefix("late ")
        if isinstance(request, schema.ChatRequest):
            message = answers.ChatMessage(content=text)
            choice = answers.ChatChoice(index=0, message=message, finish_reason="stop", logprobs=_logprobs(request))
            return answers.ChatAnswer(choices=[choice], **_common())
        choices = [
            answers.Choice(index=i, text=text, finish_reason="length", logprobs=_logprobs(request))
            for i in range(request.sequences)
        ]
        return answers.GenerateAnswer(choices=choices, prompt=prompt, **_common())

    async def begin(
        self, request: schema.Request, request_id: str, limit: float, arrived: asyncio.Event, endpoint: Endpoint
    ) -> Exchange:
        exchange = Exchange(arrived, lambda: answering.cancel())
        exchange.limit(limit)

        async def answer() -> None:
            try:
                await self._stream(request, lambda part: _put(exchange, part))
            except Exception as error:
                exchange.end(error)  # type: ignore[arg-type]
            else:
                exchange.end()

        answering = asyncio.create_task(answer())
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

    async def _stream(self, request: schema.Request, put: Callable[[Head | Piece], Awaitable[None]]) -> None:
        prompt = _prompt(request)
        if not prompt.startswith("wait"):
            await self._begin(request)
        common = _common()
        await put(Head(common["id"], common["created"], MODEL, common["usage"].prompt_tokens))
        for position, letter in enumerate(prompt):
            if position == 2 and prompt.startswith("late "):
                raise error_from_dict(json.loads(prompt[5:]))
            for index in range(request.sequences):
                await put(Piece(index, letter, 1, cached=2 if position == index == 0 else 0))
        if prompt.startswith("wait"):
            await self._begin(request)
        for index in range(request.sequences if prompt != "stop short" else 0):
            await put(Piece(index, "", 0, finish="stop"))

    async def _begin(self, request: schema.Request) -> str:
        self.requests.append(request)
        prompt = _prompt(request)
        if prompt.startswith("error "):
            raise error_from_dict(json.loads(prompt[6:]))
        if prompt == "bug":
            raise ZeroDivisionError
        if prompt == "wait":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if prompt == "meet":
            await self.meeting.wait()
        return prompt


async def _put(exchange: Exchange, part: Head | Piece) -> None:
    """Put a part into the exchange, and wait until it is read: parts that wait for a reader are merged."""
    exchange.put(part)
    while exchange.has_news and not exchange.over:
        await asyncio.sleep(0.001)


def _prompt(request: schema.Request) -> str:
    return request.messages[-1].content if isinstance(request, schema.ChatRequest) else request.prompt


def _common() -> dict[str, Any]:
    cached = answers.PromptTokensDetails(cached_tokens=2)
    usage = answers.Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7, prompt_tokens_details=cached)
    return {"id": "scripted-1", "created": 1_700_000_000, "model": MODEL, "usage": usage}


def _logprobs(request: schema.Request) -> answers.Logprobs | None:
    if request.logprobs is None:
        return None
    top = [answers.TopLogprob(token="é", logprob=-0.5)]
    return answers.Logprobs(content=[answers.TokenLogprob(token="\u2028", logprob=-1.0, top_logprobs=top)])


class ScriptedServer:
    """Both ports, for a scripted model and those of `pools`. `tokens` has the Authorization values of requests."""

    def __init__(self, pools: Sequence[Any] = ()) -> None:
        self.pool = ScriptedPool()
        self.pools = [self.pool, *pools]
        self.tokens: list[str | None] = []
        self.grpc_port = self.http_port = 0

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @asynccontextmanager
    async def open(self, grpc_port: int = 0, http_port: int = 0) -> AsyncIterator[None]:
        service = Service(self.pools, GatewayConfig())
        interceptors = [_TokenRecorder(self.tokens), LegacyInterceptor(service.answer)]
        rpc = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
        rpc.add_generic_rpc_handlers(Servicer(service).handlers())
        self.grpc_port = rpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        await rpc.start()
        app = build_app(service)

        async def recording(scope: Any, receive: Any, send: Any) -> None:
            self.tokens.append(dict(scope["headers"]).get(b"authorization", b"").decode() or None)
            await app(scope, receive, send)

        config = uvicorn.Config(
            recording, host="127.0.0.1", port=http_port, log_level="warning", lifespan="off", ws="none"
        )
        http = uvicorn.Server(config)
        http.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        serving = asyncio.create_task(http.serve())
        while not http.started:
            await asyncio.sleep(0.01)  # uvicorn has no event for this
        self.http_port = http.servers[0].sockets[0].getsockname()[1]
        try:
            yield
        finally:
            http.should_exit = http.force_exit = True
            for connection in list(http.server_state.connections):
                connection.transport.abort()
            await serving
            await rpc.stop(grace=None)


class _TokenRecorder(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, tokens: list[str | None]) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._tokens.append(dict(details.invocation_metadata).get("authorization"))
        return await continuation(details)


@contextmanager
def serving_scripted(grpc_port: int = 0, http_port: int = 0, pools: Sequence[Any] = ()) -> Iterator[ScriptedServer]:
    """Open the ports within the block."""
    scripted, opened = ScriptedServer(pools), threading.Event()
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        loop, closing = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(closing.set))
        async with scripted.open(grpc_port, http_port):
            opened.set()
            await closing.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert opened.wait(SECONDS)
    try:
        yield scripted
    finally:
        stop[0]()
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def module_server() -> Iterator[ScriptedServer]:
    """Yield the ports that a module's tests share; tests use `scripted`."""
    with serving_scripted() as scripted:
        yield scripted


@pytest.fixture
def scripted(module_server: ScriptedServer) -> ScriptedServer:
    """Return the ports after clearing their notes."""
    module_server.pool.requests.clear()
    module_server.pool.waiting.clear()
    module_server.pool.cancelled.clear()
    module_server.tokens.clear()
    return module_server


@pytest.fixture(params=["grpc", "http"])
def endpoint(request: pytest.FixtureRequest, scripted: ScriptedServer) -> str:
    """Return the URL of each port in turn."""
    return scripted.grpc_url if request.param == "grpc" else scripted.http_url


@pytest.fixture(name="serving_scripted")
def serving_scripted_fixture() -> Any:
    """Return a function: `with serving_scripted(grpc_port, http_port) as scripted:` opens separate ports."""
    return serving_scripted
