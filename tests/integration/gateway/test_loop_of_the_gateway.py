"""No request takes the gateway's event loop for longer than 20 ms: all other streams would wait for it.

The requests are those that cost the most to read and to check, or to answer, on both ports, up to the limit of a body.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import httpx
import pytest
from loop_watchdog import Watchdog

from run_gpt.client import wire
from run_gpt.gateway.legacy import METHOD as LEGACY
from run_gpt.gateway.legacy import LegacyRequest

MODEL = {"model": "scripted"}
PART = {"type": "text", "text": ""}
STREAM = {**MODEL, "stream": True}
SMALL = {"prompt": "x", "max_new_tokens": 1}
USER = {"role": "user", "content": "{}"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def deep(depth: int) -> dict[str, Any]:
    """Return a JSON schema of so many objects in each other."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}


def choices(count: int) -> dict[str, Any]:
    return {"type": "choice", "choices": ["x"] * count}


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def hostile(name: str, path: str, body: Callable[[], Any]) -> Any:
    return pytest.param(path, body, id=name)


HTTP = [
    hostile("ids", "/v1/completions", lambda: {**MODEL, "prompt": [1] * 1_900_000}),
    hostile("native ids", "/generate", lambda: {**SMALL, "prompt": [1] * 1_900_000}),
    hostile("prompts", "/v1/completions", lambda: {**MODEL, "prompt": ["x"] * 900_000}),
    hostile("texts", "/embed", lambda: {"texts": ["x"] * 900_000}),
    hostile("a long text", "/generate", lambda: {**SMALL, "prompt": "7" * 4_000_000}),
    hostile("a text of escapes", "/generate", lambda: {**SMALL, "prompt": "\u1234" * 600_000}),
    hostile("messages", "/chat", lambda: {"messages": [USER] * 110_000}),
    hostile("OpenAI's messages", "/v1/chat/completions", lambda: {"model": "scripted", "messages": [USER] * 99_000}),
    hostile("parts", "/chat", lambda: {"messages": [{**USER, "content": [{"type": "text", "text": ""}] * 120_000}]}),
    hostile("input items", "/v1/responses", lambda: {"model": "scripted", "input": [USER] * 99_000}),
    hostile("tools", "/chat", lambda: {"messages": [USER], "tools": [TOOL] * 40_000}),
    hostile("stop texts", "/generate", lambda: {**SMALL, "stop": ["x"] * 900_000}),
    hostile("biases", "/generate", lambda: {**SMALL, "logit_bias": {str(i): 1 for i in range(350_000)}}),
    hostile("a wide schema", "/generate", lambda: {**SMALL, "response_format": form(wide(100_000))}),
    hostile("a deep schema", "/generate", lambda: {**SMALL, "response_format": form(deep(90))}),
    hostile("unknown fields", "/generate", lambda: {**SMALL, **{f"f{i}": i for i in range(250_000)}}),
    hostile("a long number", "/generate", lambda: '{"prompt": "x", "seed": ' + "9" * 4_000_000 + "}"),
    hostile("deep arrays", "/generate", lambda: '{"prompt": ' + "[" * 2_000_000),
    hostile(
        "choices", "/generate", lambda: {**SMALL, "response_format": {"type": "choice", "choices": ["x"] * 900_000}}
    ),
]


def script(**said: Any) -> str:
    return json.dumps(said)


MANY = script(words=2000, alternatives=20)
"""Script of an answer with 40,000 log-probabilities."""
MERGED = script(words=["a", "b", "c"], alternatives=20, logprobs=1600)
"""Script of a stream in whose events many tokens were merged."""
CHAT = {"model": "scripted", "logprobs": True, "top_logprobs": 20}


def asks(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


LONG_ANSWERS = [
    hostile("log-probabilities", "/generate", lambda: {"prompt": MANY, "logprobs": 20, "n": 8}),
    hostile("a chat's", "/chat", lambda: {"messages": asks(MANY), "logprobs": 20, "n": 8}),
    hostile("a completion's", "/v1/completions", lambda: {**MODEL, "prompt": MANY, "logprobs": 20, "n": 8}),
    hostile("an OpenAI chat's", "/v1/chat/completions", lambda: {**CHAT, "messages": asks(MANY), "n": 8}),
    hostile("a response's", "/v1/responses", lambda: {**MODEL, "input": MANY, "top_logprobs": 20}),
    hostile("a stream's", "/generate_stream", lambda: {"prompt": MERGED, "logprobs": 20}),
    hostile("a streamed completion's", "/v1/completions", lambda: {**STREAM, "prompt": MERGED, "logprobs": 20}),
    hostile("a streamed chat's", "/v1/chat/completions", lambda: {**CHAT, **STREAM, "messages": asks(MERGED)}),
    hostile("a streamed response's", "/v1/responses", lambda: {**STREAM, "input": MERGED, "top_logprobs": 20}),
    hostile("vectors", "/embed", lambda: {"texts": [script(numbers=2048)] * 512}),
    hostile("OpenAI's vectors", "/v1/embeddings", lambda: {**MODEL, "input": [script(numbers=2048)] * 512}),
    hostile("token ids", "/tokenize", lambda: {"prompt": script(numbers=1_000_000)}),
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, free_ports: Any, a_stack: Any) -> Iterator[tuple[Any, Watchdog]]:
    """Yield a gateway under watch, which has answered each kind of request once: the first ones import modules."""
    folder = tmp_path_factory.mktemp("watched")
    watchdog = Watchdog(folder / "slow")
    with a_stack(folder, free_ports(3), 1, {}, "ready", watchdog.env("gateway")) as stack:
        for path in {case.values[0] for case in HTTP}:
            httpx.post(stack.http + path, json={"model": "scripted", "prompt": "{}", "messages": [USER]}, timeout=30)
            httpx.post(stack.http + path, json={"prompt": "{}"}, timeout=30)
        yield stack, watchdog


def slow(watched: Any) -> list[str]:
    """Return the callbacks that were too long, once the loop has gone on: a note comes after the answer."""
    stack, watchdog = watched
    httpx.get(f"{stack.http}/health", timeout=60)
    notes: list[str] = watchdog.news()
    return notes


@pytest.mark.parametrize(("path", "body"), HTTP)
def test_an_http_request_does_not_hold_the_loop(watched: Any, path: str, body: Callable[[], Any]) -> None:
    stack, watchdog = watched
    made = body()
    content = made if isinstance(made, str) else json.dumps(made, separators=(",", ":"))
    assert len(content) < 4 * 2**20, "a larger body would be refused unread"
    watchdog.news()
    response = httpx.post(stack.http + path, content=content, timeout=120)
    assert response.status_code in (200, 400, 413)
    assert not slow(watched)


@pytest.mark.parametrize(("path", "body"), LONG_ANSWERS)
def test_a_long_answer_does_not_hold_the_loop(watched: Any, path: str, body: Callable[[], Any]) -> None:
    stack, watchdog = watched
    watchdog.news()
    response = httpx.post(stack.http + path, json=body(), timeout=120)
    assert response.status_code == 200, response.text
    assert len(response.content) > 1_000_000, "less would take no time"
    assert b"rungpt-part" not in response.content
    assert not slow(watched)


def documents(fields: dict[str, Any], count: int = 1) -> bytes:
    data = {"docs": {"docs": [wire.document(fields)] * count}}
    return wire.DataRequest(header={"exec_endpoint": "/generate"}, data=data).SerializeToString()


def older(count: int) -> bytes:
    """Return a message of inference-client 0.0.8."""
    request = LegacyRequest()
    request.header.exec_endpoint = "/generate"
    for _ in range(count):
        request.data.docs.docs.add(id=b"0" * 32).tags.update({"prompt": "{}"})
    return request.SerializeToString()


GRPC = [
    hostile("documents", wire.UNARY, lambda: documents({"prompt": "{}"}, 5_000)),
    hostile("ids", wire.UNARY, lambda: documents({"prompt": [1] * 400_000})),
    hostile("a long text", wire.UNARY, lambda: documents({"prompt": "7" * 4_000_000})),
    hostile("messages", wire.UNARY, lambda: documents({"messages": [USER] * 40_000})),
    hostile("fields", wire.UNARY, lambda: documents({f"f{i}": 1 for i in range(100_000)})),
    hostile("older documents", LEGACY, lambda: older(5_000)),
    hostile("log-probabilities", wire.UNARY, lambda: documents({"prompt": MANY, "logprobs": 20})),
]


@pytest.mark.parametrize(("method", "message"), GRPC)
async def test_a_grpc_message_does_not_hold_the_loop(watched: Any, method: str, message: Callable[[], bytes]) -> None:
    stack, watchdog = watched
    async with grpc.aio.insecure_channel(stack.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        await channel.unary_unary(wire.UNARY)(documents({"prompt": "{}"}), timeout=30)
        made = message()
        watchdog.news()
        with suppress(grpc.aio.AioRpcError):
            async for _ in channel.stream_stream(method)(iter([made]), timeout=60):
                pass
    assert not slow(watched)
