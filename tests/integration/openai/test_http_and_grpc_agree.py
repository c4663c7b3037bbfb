"""Equality of gRPC and HTTP. Without these tests, users of Jina's client could lack endpoints that HTTP has."""

import json
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import pytest
import requests
import sseclient
from docarray import BaseDoc, DocList
from jina import Client
from jina.proto import jina_pb2_grpc
from jina.types.request.data import DataRequest, SingleDocumentRequest

from run_gpt.api import documents
from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.sse import LINES

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
PARAMETERS = {**PARAMETERS, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
MUST_CALL = {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False}
SCHEMA = {"type": "object", "properties": {"b": {"enum": [1]}, "a": {"enum": [None]}}, "required": ["b", "a"]}
SCHEMA = {**SCHEMA, "additionalProperties": False}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 3, "n": 2, "max_tokens": 4}
GREEDY = {"temperature": 0}
FULL = {
    **{"temperature": 0, "stop": ["zebra"], "logit_bias": {"2": -5.5, "100": 1}, "presence_penalty": 0.5},
    **{"frequency_penalty": 0.25, "user": "anna", "max_tokens": 5, "model": "smollm2"},
}
# At least one body for each endpoint. Endpoints that change the server (adapters, models) have their own tests.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/generate": [
        {"prompt": "Hello", "max_new_tokens": 4, "logprobs": 1, "echo": True},
        {"prompt": [1, 2], "max_new_tokens": 4},
    ],
    "/generate_stream": [{"prompt": "Hello", "max_new_tokens": 4, "logprobs": 1}],
    "/chat": [{"messages": QUESTION, "max_new_tokens": 4}, {"messages": QUESTION, "tools": [TOOL], **MUST_CALL}],
    "/chat_stream": [{"messages": QUESTION, "max_new_tokens": 4}, {"messages": QUESTION, "tools": [TOOL], **MUST_CALL}],
    "/embed": [{"texts": ["Hi", "there"]}, {"texts": [[1, 2]], "encoding_format": "base64", "pooling": "last"}],
    "/tokenize": [{"prompt": "Hello"}, {"messages": QUESTION, "tools": [TOOL]}],
    "/detokenize": [{"tokens": [19556, 905]}],
    "/models/load": [{"model": "smollm2"}],
    "/v1/completions": [
        {"prompt": "Hello", "logprobs": 2, "echo": True, **FULL},
        {"prompt": ["Hello", "The"], **SAMPLED},
        {"prompt": [[1, 2], [3]], "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0},
        {"prompt": "JSON:", "max_tokens": 30, **FORM},
    ],
    "/v1/chat/completions": [
        {"messages": QUESTION, "logprobs": True, "top_logprobs": 2, **FULL},
        {"messages": QUESTION, **SAMPLED},
        {"messages": QUESTION, "tools": [TOOL], **MUST_CALL},
        {"messages": QUESTION, "max_tokens": 30, **FORM},
    ],
    "/v1/responses": [
        {"input": "Hi", "max_output_tokens": 4, "temperature": 0, "top_logprobs": 1, "metadata": {"a": "b"}},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], "max_output_tokens": 1},
        {
            **{"input": "Hi", "tools": [{"type": "function", **TOOL["function"]}], "temperature": 0},  # type: ignore[dict-item]
            **{"tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
        },
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    ],
    "/v1/embeddings": [{"input": "Hi"}, {"input": [[1, 2], [3]], "encoding_format": "base64"}],
    "/v1/models": [{}],
    "/v1/models/{model}": [{"model": "smollm2"}],
    "/v1/messages": [
        {"messages": QUESTION, "max_tokens": 8, "system": "You help.", "stop_sequences": ["Paris"]},
        {
            **{"messages": QUESTION, "tools": [{"name": "f", "input_schema": PARAMETERS}]},
            **{"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
        },
    ],
    "/v1/messages/count_tokens": [{"messages": QUESTION, "system": "You help."}],
    "/api/chat": [{"messages": QUESTION, "options": {"num_predict": 4, **GREEDY}}],
    "/api/generate": [{"prompt": "Hello", "raw": True, "options": {"num_predict": 4, **GREEDY}}],
    "/api/embed": [{"input": ["Hi", "there"]}],
    "/api/tags": [{}],
    "/api/ps": [{}],
    "/api/show": [{"model": "smollm2"}],
}
WRONG: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "suffix": "y"},
    "/v1/chat/completions": {"messages": QUESTION, "web_search_options": {}, "max_tokens": 1},
    "/v1/responses": {"input": "x", "previous_response_id": "resp_1", "max_output_tokens": 1},
    "/v1/embeddings": {"input": [[99999]]},
    "/v1/models/{model}": {"model": "gpt-5"},
    "/tokenize": {},
    "/detokenize": {"tokens": [99999]},
}
TOLD_ANEW = {
    *("id", "item_id", "call_id", "created", "created_at", "cached_tokens", "error"),
    *("input_tokens", "cache_read_input_tokens", "total_duration", "prompt_eval_duration", "eval_duration"),
}
"""Fields that differ between answers, and `error`, which only documents have."""
UNARY = [(e, body) for path, bodies in BODIES.items() if (e := ENDPOINTS[path]).answer for body in bodies]
STREAMED = [(e, body) for path, bodies in BODIES.items() if (e := ENDPOINTS[path]).event for body in bodies]


def name_of(value: Any) -> str:
    return value.path if isinstance(value, Endpoint) else json.dumps(value)[:60]


def test_every_endpoint_has_a_case() -> None:
    """A new endpoint must have a case, which shows that gRPC and HTTP both have it."""
    changing = ("/adapters", "/models/unload")
    assert set(BODIES) == {path for path in ENDPOINTS if not path.startswith(changing)}


def same(value: Any, *, places: int = 4) -> Any:
    """Return the part of a value that must be the same over gRPC and HTTP."""
    if isinstance(value, dict):
        return {name: same(inner) for name, inner in value.items() if name not in TOLD_ANEW and inner is not None}
    if isinstance(value, list):
        return [same(inner) for inner in value]
    return round(value, places) if isinstance(value, float) else value


def document(endpoint: Endpoint, body: dict[str, Any]) -> BaseDoc:
    return documents.document_class(endpoint.request)(**ordered(body))


def ordered(value: Any) -> Any:
    """Return the value with JSON text for objects whose order counts, since a document's maps have no order."""
    if isinstance(value, list):
        return [ordered(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        name: json.dumps(inner) if name in ("parameters", "schema", "input_schema") else ordered(inner)
        for name, inner in value.items()
    }


def url(server: Any, endpoint: Endpoint, body: dict[str, Any]) -> str:
    return server.http_url + endpoint.path.format(**body)


def posted(server: Any, endpoint: Endpoint, body: dict[str, Any], *, status: int | None = 200) -> Any:
    if "{" in endpoint.path:  # its fields are in the path
        answer = requests.get(url(server, endpoint, body), timeout=120)
    else:
        answer = requests.post(url(server, endpoint, body), json=body, timeout=120)
    assert status in (None, answer.status_code), answer.text
    return answer.json()


@pytest.mark.parametrize(("endpoint", "body"), UNARY, ids=name_of)
async def test_a_whole_answer_is_the_same(server: Any, endpoint: Endpoint, body: dict[str, Any]) -> None:
    if "temperature" in endpoint.request.model_fields:
        body = {**GREEDY, **body}
    if "stream" in endpoint.request.model_fields:
        body = {**body, "stream": False}
    over_http = posted(server, endpoint, body)
    inputs = DocList[documents.document_class(endpoint.request)]([document(endpoint, body)])  # type: ignore[misc]
    kind: Any = documents.document_class(endpoint.answer)  # type: ignore[arg-type]
    client = Client(host=server.grpc_url, asyncio=True)
    answers = [doc async for docs in client.post(endpoint.path, inputs, return_type=DocList[kind]) for doc in docs]
    assert [same(doc.model_dump()) for doc in answers] == [same(over_http)]


@pytest.mark.alone  # on a busy machine events are merged, over HTTP others than over gRPC
@pytest.mark.parametrize(("endpoint", "body"), STREAMED, ids=name_of)
async def test_a_stream_is_the_same(server: Any, endpoint: Endpoint, body: dict[str, Any]) -> None:
    if endpoint.answer is not None:
        body = {**(GREEDY if "temperature" in endpoint.request.model_fields else {}), **body, "stream": True}
        if endpoint.path.endswith("completions"):
            body["stream_options"] = {"include_usage": True}
    lines = streamed(server, endpoint, body)
    if endpoint.last_line:
        assert lines.pop() == endpoint.last_line
    over_http = [same(json.loads(line)) for line in lines]
    kind: Any = documents.document_class(endpoint.event)  # type: ignore[arg-type]
    client = Client(host=server.grpc_url, asyncio=True)
    over_grpc = [
        same(doc.model_dump())
        async for doc in client.stream_doc(endpoint.path, document(endpoint, body), return_type=kind)
    ]
    assert in_turns(over_grpc) == in_turns(over_http)


def streamed(server: Any, endpoint: Endpoint, body: dict[str, Any]) -> list[str]:
    with requests.post(url(server, endpoint, body), json=body, stream=True, timeout=120) as answer:
        if endpoint.form is LINES:
            return answer.text.splitlines()
        return [event.data for event in sseclient.SSEClient(answer).events()]


def in_turns(events: list[Any]) -> list[Any]:
    """Sort the events by choice. Those of one choice keep their order; between choices there is none."""
    return sorted(events, key=lambda event: [choice["index"] for choice in event.get("choices", ())] or [99])


@pytest.mark.parametrize(
    ("path", "stream"), [(path, way) for path in WRONG for way in sorted({False, ENDPOINTS[path].event is not None})]
)
async def test_an_error_is_the_same(server: Any, path: str, stream: bool) -> None:
    endpoint, body = ENDPOINTS[path], WRONG[path]
    body = {**body, "stream": True} if stream else body
    error = posted(server, endpoint, body, status=None)["error"]
    async with grpc.aio.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await called(channel, endpoint, document(endpoint, body), stream=stream)
    assert json.loads(raised.value.trailing_metadata()["rungpt-error"]) == error
    assert raised.value.details() == error["message"]


async def called(channel: Any, endpoint: Endpoint, doc: BaseDoc, *, stream: bool) -> None:
    """Call by a bare stub, since Jina's client hides the details of an error."""
    if stream:
        single = SingleDocumentRequest()
        single.header.exec_endpoint, single.document_cls, single.data.doc = endpoint.path, type(doc), doc
        async for _ in jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(single):
            pass
        return
    request = DataRequest()
    request.header.exec_endpoint = endpoint.path
    request.data.docs = DocList[type(doc)]([doc])  # type: ignore[misc]
    await jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel).process_single_data(request)
