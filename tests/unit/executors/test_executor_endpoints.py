"""The executor's endpoints: without one of them a gateway or a Jina client would get no answer to a request."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api.adapters import AdapterList
from run_gpt.api.check import PATH
from run_gpt.api.documents import WireError, document_class
from run_gpt.api.endpoints import MODEL_ENDPOINTS, Endpoint
from run_gpt.errors import InvalidRequest, QueueFull
from run_gpt.executors.causal_lm.executor import CausalLMExecutor
from run_gpt.executors.causal_lm.link import LinkEndpoints
from run_gpt.link.frames import Start
from run_gpt.process import tenants

OTHERS = {"/status", "/metrics", "/load", "/unload"}
PATHS = {endpoint.path for endpoint in MODEL_ENDPOINTS}
ANSWER = AdapterList(id="x", created=1, model="m", adapters=["a"])


def jina_endpoint(path: str) -> Any:
    """Return Jina's entry for an endpoint: function and schemas."""
    return CausalLMExecutor.requests_by_class["CausalLMExecutor"][path]


def test_the_inner_wire_has_every_endpoint_of_a_model() -> None:
    assert LinkEndpoints(cast("Any", None))._handlers.keys() == PATHS | OTHERS | {PATH}


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_request_of_the_inner_wire_runs_for_the_tenant_that_it_names(path: str) -> None:
    seen: list[str] = []

    async def answer(*_: Any) -> tuple[AdapterList, list[Any]]:
        seen.append(tenants.current.get())
        return ANSWER, []

    service = SimpleNamespace(answer_in_parts=answer, stream=answer)
    reply = cast("Any", SimpleNamespace(put=lambda update: None))
    await LinkEndpoints(cast("Any", service))(Start(1, path, b'{"prompt": "x"}', "r", {}, "alice"), reply)
    assert seen == ["alice"]


async def test_a_request_of_the_inner_wire_is_counted_before_it_is_parsed() -> None:
    body = b'{"tokens": [' + b"5," * 200_000 + b"5]}"
    reply = cast("Any", SimpleNamespace(put=lambda update: None))
    with pytest.raises(InvalidRequest, match=r"JSON values, the limit is 147,456"):
        await LinkEndpoints(cast("Any", SimpleNamespace()))(Start(1, "/detokenize", body, "r", {}, ""), reply)


def test_jina_has_every_endpoint_of_a_model() -> None:
    assert CausalLMExecutor.requests_by_class["CausalLMExecutor"].keys() >= PATHS | OTHERS


@pytest.mark.parametrize("endpoint", MODEL_ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_jina_knows_the_documents_of_each_endpoint(endpoint: Endpoint) -> None:
    entry, streamed = jina_endpoint(endpoint.path), endpoint.answer is None
    assert (entry.is_generator, entry.is_singleton_doc, entry.is_batch_docs) == (streamed, streamed, not streamed)
    assert getattr(CausalLMExecutor, entry.fn.__name__) is entry.fn
    schemas = (entry.request_schema, entry.response_schema)
    found = schemas if streamed else tuple(schema.doc_type for schema in schemas)
    assert found == (document_class(endpoint.request), document_class(endpoint.body(stream=streamed)))


async def test_documents_are_answered_in_their_order_and_an_error_is_raised() -> None:
    async def answer(request: Any) -> AdapterList:
        if request.name == "bad":
            raise QueueFull("full")
        return ANSWER.model_copy(update={"adapters": [request.name]})

    entry, executor = jina_endpoint("/adapters/unload"), SimpleNamespace(service=SimpleNamespace(answer=answer))
    docs = entry.request_schema([entry.request_schema.doc_type(name=name) for name in "ab"])
    assert [doc.adapters for doc in await entry.fn(executor, docs=docs, parameters={})] == [["a"], ["b"]]
    docs[1].name = "bad"
    with pytest.raises(WireError, match="full"):
        await entry.fn(executor, docs=docs, parameters={})


async def test_an_error_is_the_last_document_of_a_stream() -> None:
    async def events(request: Any) -> Any:
        yield ANSWER
        raise QueueFull("full")

    entry, executor = jina_endpoint("/generate_stream"), SimpleNamespace(service=SimpleNamespace(events=events))
    stream = entry.fn(executor, doc=entry.request_schema(prompt="x"), parameters={})
    first, last = [doc async for doc in stream]
    assert first.adapters == ["a"]
    assert last.error["message"] == "full"
