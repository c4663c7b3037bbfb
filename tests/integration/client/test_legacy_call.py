"""`/jina.JinaRPC/Call` with older messages (those of the published inference-client) and new ones, on one port."""

import json

import grpc
import pytest
from docarray import BaseDoc
from jina.proto import jina_pb2

from run_gpt import errors
from run_gpt.api import answers, documents, schema
from run_gpt.client import wire
from run_gpt.gateway.legacy import METHOD, LegacyRequest

SECONDS = 20


@pytest.fixture
def call(scripted):
    """Yield a function that sends raw messages as one stream and returns the raw answers."""
    with grpc.insecure_channel(f"127.0.0.1:{scripted.grpc_port}") as channel:
        yield lambda *messages: list(channel.stream_stream(METHOD)(iter(messages), timeout=SECONDS))


def _older(*prompts, endpoint="/generate", **parameters):
    request = LegacyRequest()
    request.header.exec_endpoint = endpoint
    request.parameters.update(parameters)
    for i, prompt in enumerate(prompts):
        request.data.docs.docs.add(id=b"%032x" % i).tags.update({"prompt": prompt})
    return request.SerializeToString()


def _texts(*answers):
    read = [LegacyRequest.FromString(answer) for answer in answers]
    assert all(one.header.status.code == 0 for one in read)
    return [document.tags["generated_text"] for one in read for document in one.data.docs.docs]


def test_older_prompts_are_answered_in_their_order(call):
    prompts = [f"prompt {i}" for i in range(100)]
    assert _texts(*call(*map(_older, prompts))) == prompts
    assert _texts(*call(_older("one", "two"))) == ["one", "two"]


def test_older_prompts_run_together(call):
    assert _texts(*call(*[_older("meet")] * 3)) == ["meet"] * 3
    assert _texts(*call(_older("meet", "meet", "meet"))) == ["meet"] * 3


def test_older_parameters_arrive(call, scripted):
    bias = {"5": 1.5}
    assert _texts(*call(_older("hi", max_new_tokens=7, temperature=1, do_sample=True, stop=["x"], logit_bias=bias)))
    assert scripted.pool.requests == [
        schema.GenerateRequest.parse(
            {
                "prompt": "hi",
                "max_new_tokens": 7,
                "temperature": 1.0,
                "do_sample": True,
                "stop": ["x"],
                "logit_bias": bias,
            }
        )
    ]


@pytest.mark.parametrize(
    ("message", "name", "text"),
    [
        (_older("hi", tempreature=1), "InvalidRequest", "tempreature"),
        (_older("hi", top_p=2), "InvalidRequest", "top_p"),
        (_older(""), "InvalidRequest", "prompt"),
        (_older(3.0), "InvalidRequest", "prompt"),
        (_older(["a"]), "InvalidRequest", "prompt"),
        (_older("hi", stop=[["a"]]), "InvalidRequest", "stop"),
        (_older("hi", endpoint="/caption"), "InvalidRequest", "/caption"),
        (_older(f"error {json.dumps(errors.QueueFull('full').to_dict())}"), "QueueFull", "full"),
        (_older("fine", f"error {json.dumps(errors.Unavailable('gone').to_dict())}"), "Unavailable", "gone"),
        (_older("bug"), "InternalError", "log"),
    ],
)
def test_an_error_stands_in_the_older_answers_header(call, message, name, text):
    (answer,) = call(message)
    status = LegacyRequest.FromString(answer).header.status
    assert (status.code, status.exception.name) == (1, name)
    assert text in status.description
    assert _texts(*call(_older("still here"))) == ["still here"]


def test_new_messages_pass(call):
    request = schema.GenerateRequest.parse({"prompt": "hi"})
    replies = call(*[wire.unary_message("/generate", request).SerializeToString()] * 3)
    for reply in replies:
        (document,) = jina_pb2.DataRequestProto.FromString(reply).data.docs.docs
        assert document.data["choices"].list.data[0].dict.data["text"].text == "hi"
    assert len(replies) == 3
    document: BaseDoc = documents.document_class(answers.GenerateAnswer).from_protobuf(document)
    assert documents.document_to_answer(answers.GenerateAnswer, document).text == "hi"


@pytest.mark.parametrize("messages", [[b"\xff\xff"], [_older("hi"), b"\xff\xff"], [b""], [b"", b""]])
def test_an_unreadable_request_is_refused_and_the_next_is_answered(call, messages):
    with pytest.raises(grpc.RpcError) as raised:
        call(*messages)
    assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert _texts(*call(_older("still here"))) == ["still here"]


def test_a_stream_without_messages_ends(call):
    assert call() == []


def test_an_older_client_that_goes_ends_its_request(scripted):
    with grpc.insecure_channel(f"127.0.0.1:{scripted.grpc_port}") as channel:
        answers = channel.stream_stream(METHOD)(iter([_older("wait")]))
        assert scripted.pool.waiting.wait(SECONDS)
        answers.cancel()
        assert scripted.pool.cancelled.wait(SECONDS)
