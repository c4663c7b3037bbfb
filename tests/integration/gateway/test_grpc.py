"""The gRPC port: answers and errors as Jina's own client and a bare stub get them."""

import asyncio
import json
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import pytest
from docarray import BaseDoc, DocList
from grpc_health.v1 import health_pb2, health_pb2_grpc
from jina import Client
from jina.excepts import BadServer, BadServerFlow
from jina.proto import jina_pb2, jina_pb2_grpc
from jina.types.request.data import DataRequest, SingleDocumentRequest
from waiting import wait_until

from run_gpt.api import answers
from run_gpt.api import documents as d
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import error_from_dict

GenerateRequestDocument = d.document_class(GenerateRequest)
AnswerDocument = d.document_class(answers.GenerateAnswer)


def ask(**fields: Any) -> BaseDoc:
    return GenerateRequestDocument(prompt=json.dumps(fields))


def chat(**fields: Any) -> BaseDoc:
    return d.document_class(ChatRequest)(messages=[{"role": "user", "content": json.dumps(fields)}])


def jina_client(stack: Any) -> Client:
    return Client(host=f"grpc://{stack.grpc}", asyncio=True)


async def post(stack: Any, path: str, docs: list[BaseDoc], answer: type[BaseDoc], **options: Any) -> list[Any]:
    inputs = DocList[type(docs[0])](docs)
    results = []
    async for part in jina_client(stack).post(path, inputs, return_type=DocList[answer], **options):
        results.extend(part)
    return results


def data_request(path: str, *docs: BaseDoc) -> DataRequest:
    request = DataRequest()
    request.header.exec_endpoint = path
    if docs:
        request.data.docs = DocList[type(docs[0])](docs)
    return request


def stream_request(path: str, doc: BaseDoc) -> SingleDocumentRequest:
    request = SingleDocumentRequest()
    request.header.exec_endpoint = path
    request.document_cls = type(doc)
    request.data.doc = doc
    return request


def sent_error(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return json.loads(error.trailing_metadata()["rungpt-error"])


async def unary_error(stack: Any, request: DataRequest) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel).process_single_data(request)
    return raised.value


async def stream_error(stack: Any, request: SingleDocumentRequest) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(request):
                pass
    return raised.value


async def test_post_answers_documents_in_order(stack: Any) -> None:
    docs = [ask(words=[f"a{i}"], delay=0.1 * (3 - i)) for i in range(3)]
    got = await post(stack, "/generate", docs, AnswerDocument)
    assert [d.document_to_answer(answers.GenerateAnswer, a).text for a in got] == ["a0", "a1", "a2"]


@pytest.mark.parametrize("stream", [True, False])
async def test_many_messages_of_one_call_come_back_in_order(stack: Any, stream: bool) -> None:
    docs = [ask(words=[str(i)]) for i in range(50)]
    got = await post(stack, "/generate", docs, AnswerDocument, request_size=1, stream=stream)
    texts = [a.choices[0]["text"] for a in got]
    assert sorted(texts, key=int) == [str(i) for i in range(50)]
    if stream:
        assert texts == [str(i) for i in range(50)]


async def test_chat_and_its_stream(stack: Any) -> None:
    (answer,) = await post(stack, "/chat", [chat(words=["a", "b"])], d.document_class(answers.ChatAnswer))
    assert d.document_to_answer(answers.ChatAnswer, answer).text == "ab"
    chunks = []
    async for doc in jina_client(stack).stream_doc(
        "/chat_stream", chat(words=["a", "b"]), return_type=d.document_class(answers.ChatEvent)
    ):
        chunks.append(d.document_to_answer(answers.ChatEvent, doc))
    assert "".join(c.text for c in chunks) == "ab"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_value", "INVALID_ARGUMENT"),
        ("invalid_api_key", "UNAUTHENTICATED"),
        ("model_not_found", "NOT_FOUND"),
        ("request_too_large", "RESOURCE_EXHAUSTED"),
        ("queue_full", "RESOURCE_EXHAUSTED"),
        ("internal_error", "INTERNAL"),
        ("unavailable", "UNAVAILABLE"),
        ("deadline_exceeded", "DEADLINE_EXCEEDED"),
    ],
)
async def test_errors_have_status_message_and_metadata(stack: Any, code: str, status: str) -> None:
    error = error_from_dict({"message": "so it is", "code": code, "param": "prompt"})
    doc = ask(words=[], then="error", error=error.to_dict())
    for raised in (
        await unary_error(stack, data_request("/generate", doc)),
        await stream_error(stack, stream_request("/generate_stream", doc)),
    ):
        assert raised.code().name == status
        assert raised.details() == "so it is"
        assert sent_error(raised) == error.to_dict()


class Odd(BaseDoc):
    prompt: str = "x"
    colour: str = "red"


Long = type("Long", (BaseDoc,), {"__annotations__": {"x" * 50_000: int}, "x" * 50_000: 1})


class Wrong(BaseDoc):
    prompt: dict[str, str] = {"not": "a text"}  # noqa: RUF012


async def test_a_bad_document_is_refused_and_named(stack: Any) -> None:
    """Jina would drop an unknown field and answer without an error."""
    for doc, says in ((Odd(), "colour"), (Wrong(), "prompt"), (Long(), "xxxx")):
        for raised in (
            await unary_error(stack, data_request("/generate", doc)),
            await stream_error(stack, stream_request("/generate_stream", doc)),
        ):
            assert raised.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert says in raised.details()


async def test_what_is_called_wrongly_says_how_to_call_it(stack: Any) -> None:
    unknown = await unary_error(stack, data_request("/generat", ask()))
    assert unknown.code() == grpc.StatusCode.NOT_FOUND
    assert "/generate" in unknown.details()
    streamed = await unary_error(stack, data_request("/generate_stream", ask()))
    assert streamed.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "stream_doc" in streamed.details()
    request = data_request("/generate", ask())
    request.parameters = {"temperature": 0.5}
    assert "temperature" in (await unary_error(stack, request)).details()


async def test_bytes_that_are_no_message_are_refused(stack: Any) -> None:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        for method in ("/jina.JinaSingleDataRequestRPC/process_single_data", "/no.such/method"):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(method)(b"\xff\xff\xff")
            assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    assert stack.ready()["ready"]


@pytest.mark.parametrize("size", [150_000, 1_000_000])
async def test_a_message_over_the_limit_is_refused(stack: Any, size: int) -> None:
    raised = await unary_error(stack, data_request("/generate", GenerateRequestDocument(prompt="x" * size)))
    assert raised.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_errors_are_exceptions_for_jinas_client(stack: Any) -> None:
    """Jina's own gateway would return an empty document with status 200."""
    bad = GenerateRequestDocument(prompt="x", temperature=-1.0)
    with pytest.raises(BadServerFlow, match="temperature"):
        await post(stack, "/generate", [bad], AnswerDocument)
    with pytest.raises(BadServer):
        async for _ in jina_client(stack).stream_doc(
            "/generate_stream", ask(words=["a"], then="raise"), return_type=AnswerDocument
        ):
            pass


@pytest.mark.parametrize("then", ["raise", "stop silently", "error"])
async def test_a_stream_that_fails_ends_with_a_document_that_says_so(stack: Any, then: str) -> None:
    doc = ask(words=["a"], then=then, error={"message": "so it is", "code": "internal_error"})
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        call = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(
            stream_request("/generate_stream", doc)
        )
        got = [AnswerDocument.from_protobuf(message.document) async for message in call]
    assert [g.error is None for g in got] == [True, False]
    assert got[-1].error["code"] == "internal_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_cancels_ends_its_call_at_once(stack: Any, stream: bool) -> None:
    before = len(stack.journal)
    doc = ask(words=["a"] if stream else [], then="hang")
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        if stream:
            call: Any = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(
                stream_request("/generate_stream", doc)
            )
        else:
            call = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel).process_single_data(
                data_request("/generate", doc)
            )
        await asyncio.to_thread(wait_until, lambda: len(stack.journal) > before)
        request_id = stack.journal[-1][1]
        call.cancel()
    await asyncio.to_thread(wait_until, lambda: any(line[:2] == ["cancelled", request_id] for line in stack.journal))
    await asyncio.to_thread(wait_until, lambda: stack.ready()["in_flight"] == 0)


async def test_a_callers_deadline_ends_its_request(stack: Any) -> None:
    before = len(stack.journal)
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        stub = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.process_single_data(data_request("/generate", ask(words=[], then="hang")), timeout=0.5)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.to_thread(wait_until, lambda: [line[0] for line in stack.journal[before:]] == ["begin", "cancelled"])


async def test_health_dry_run_status_and_discovery(stack: Any) -> None:
    empty = jina_pb2.google_dot_protobuf_dot_empty__pb2.Empty()
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "jina.JinaRPC"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (await jina_pb2_grpc.JinaGatewayDryRunRPCStub(channel).dry_run(empty)).code == 0
        assert "jina" in (await jina_pb2_grpc.JinaInfoRPCStub(channel)._status(empty)).jina
        found = await jina_pb2_grpc.JinaDiscoverEndpointsRPCStub(channel).endpoint_discovery(empty)
        assert "/chat_stream" in found.endpoints
        assert "prompt" in found.schemas["/generate"]["input"]["model"]["properties"]
