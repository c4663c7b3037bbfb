"""OpenAI's requests and answers as Jina documents. Without these tests, gRPC and HTTP could accept or give others."""

import json
from typing import Any

import pytest
from docarray.proto import DocProto
from pydantic import ValidationError

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import answers, documents
from run_gpt.api.openai.chat import ChatCompletion, ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.response_events import Response
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import InvalidRequest

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"default": None}, "a": {"maximum": 2**40}}}
BODIES: list[tuple[Any, dict[str, Any]]] = [
    (CompletionRequest, {"prompt": "hi", "stop": "x", "logit_bias": {"7": -1.5}, "stream": True}),
    (CompletionRequest, {"prompt": [1, 2], "stop": ["x", "y"]}),
    (CompletionRequest, {"prompt": [[1], [2, 3]], "max_tokens": 0}),
    (ChatCompletionRequest, {"messages": HI, "stream": True, "stream_options": {"include_usage": True}}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    (ResponseRequest, {"input": "hi", "store": False, "truncation": "disabled", "metadata": {"a": "b"}}),
    (ResponseRequest, {"input": HI, "include": ["message.output_text.logprobs"], "tool_choice": "none"}),
    (EmbeddingRequest, {"input": "hi", "encoding_format": "base64"}),
    (EmbeddingRequest, {"input": [[1], [2]]}),
    (GenerateRequest, {"prompt": [1], "stop": "x"}),
]


def sent(document: Any) -> DocProto:
    """Return the message as it arrives at the other end."""
    return DocProto.FromString(document.to_protobuf().SerializeToString())


@pytest.mark.parametrize(("kind", "body"), BODIES, ids=str)
def test_a_document_takes_what_the_body_takes(kind: Any, body: dict[str, Any]) -> None:
    document = documents.document_class(kind)(**body)
    assert documents.message_to_request(kind, sent(document)) == kind.parse(body)


def test_the_order_in_a_schema_is_kept_as_json_text() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": json.dumps(SCHEMA)}}
    document = documents.document_class(ChatCompletionRequest)(messages=HI, tools=[tool])
    request = documents.message_to_request(ChatCompletionRequest, sent(document))
    assert request.tools is not None
    parameters = request.tools[0].function.parameters
    assert (parameters, list(parameters["properties"])) == (SCHEMA, ["b", "a"])


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest, ResponseRequest, EmbeddingRequest])
def test_what_is_refused_arrives_and_is_refused(kind: Any) -> None:
    """docarray would drop it silently."""
    for name in kind.FIELDS.refused:
        document = documents.document_class(kind)(**{name: "x"})
        with pytest.raises(InvalidRequest, match=f"{name}: this is not supported here"):
            documents.message_to_request(kind, sent(document))


def test_a_field_that_a_request_has_not_cannot_be_set() -> None:
    for kind in (GenerateRequest, ChatCompletionRequest):
        with pytest.raises(ValidationError, match="tempreature"):
            documents.document_class(kind)(tempreature=1)


def test_answers_come_as_they_are() -> None:
    usage = answers.Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    message = answers.ChatMessage(content="hi")
    choice = answers.ChatChoice(index=0, message=message, finish_reason="stop")
    whole = answers.ChatAnswer(choices=[choice], id="x", created=1, model="m", usage=usage)
    chat = ChatCompletionRequest.parse({"messages": HI}).join([whole])
    response = ResponseRequest.parse({"input": "hi", "text": {"format": {"type": "json_object"}}}).join([whole])
    for kind, answer in ((ChatCompletion, chat), (Response, response)):
        cls = documents.document_class(kind)
        data = cls.from_protobuf(sent(documents.answer_to_document(answer))).model_dump()
        for name, value in answer.model_dump().items():
            assert data[name] == value, name
