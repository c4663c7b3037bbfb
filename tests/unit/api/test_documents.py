"""Schemas as Jina documents and back. A lost field means an ignored option or a cut answer."""

import json

import pytest
from docarray.proto import DocProto
from pydantic import ValidationError

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import answers, documents, schema
from run_gpt.api.openai.models import ModelList
from run_gpt.errors import InternalError, InvalidRequest, QueueFull, error_from_dict

CACHED = answers.PromptTokensDetails(cached_tokens=8)
USAGE = answers.Usage(prompt_tokens=9, completion_tokens=2, total_tokens=11, prompt_tokens_details=CACHED)
COMMON = {"id": "x", "created": 1_700_000_000, "model": "m", "usage": USAGE}
LOGPROBS = answers.Logprobs(
    content=[answers.TokenLogprob(token="a", logprob=-1.5, top_logprobs=[answers.TopLogprob(token="b", logprob=-2.0)])]
)
REQUESTS = [
    {"prompt": "hi"},
    {"prompt": "é\u2028", "temperature": 1, "stop": ["a", "b"], "logit_bias": {"5": -1.5}, "echo": False, "n": 2},
    {"prompt": "x", "num_beams": 3, "length_penalty": -0.5},
]
ANSWERS = [
    answers.GenerateAnswer(choices=[answers.Choice(index=0, text="", logprobs=LOGPROBS)], prompt="p", **COMMON),
    answers.ChatAnswer(
        choices=[answers.ChatChoice(index=0, message=answers.ChatMessage(content="hi"), finish_reason="stop")], **COMMON
    ),
    answers.ChatEvent(choices=[answers.ChatEventChoice(index=1, delta=answers.Delta(content="é"))], **COMMON),
    answers.GenerateAnswer(choices=[], **COMMON),
]


def _sent(document):
    """Return the message as it arrives at the other end."""
    return DocProto.FromString(document.to_protobuf().SerializeToString())


@pytest.mark.parametrize("fields", REQUESTS)
def test_a_request_comes_back_as_it_was(fields):
    request = schema.GenerateRequest.parse(fields)
    message = _sent(documents.request_to_document(request))
    assert documents.message_to_request(schema.GenerateRequest, message) == request


def test_a_chat_comes_back_as_it_was():
    request = schema.ChatRequest.parse(
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]}
    )
    message = _sent(documents.request_to_document(request))
    assert documents.message_to_request(schema.ChatRequest, message) == request


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_comes_back_as_it_was(answer):
    cls = documents.document_class(type(answer))
    document = cls.from_protobuf(_sent(documents.answer_to_document(answer)))
    assert documents.document_to_answer(type(answer), document) == answer


def test_a_field_that_docarray_would_drop_is_refused_by_name():
    message = _sent(documents.request_to_document(schema.GenerateRequest.parse({"prompt": "hi"})))
    message.data["tempreature"].float = 1.0
    with pytest.raises(InvalidRequest, match="tempreature"):
        documents.message_to_request(schema.GenerateRequest, message)


def test_a_field_of_another_kind_is_refused_by_name():
    message = DocProto()
    message.data["prompt"].list.SetInParent()
    with pytest.raises(InvalidRequest, match="prompt"):
        documents.message_to_request(schema.GenerateRequest, message)


def test_an_error_in_a_document_is_raised():
    document = documents.error_to_document(answers.GenerateAnswer, QueueFull("full"))
    document = documents.document_class(answers.GenerateAnswer).from_protobuf(_sent(document))
    with pytest.raises(QueueFull, match="full"):
        documents.document_to_answer(answers.GenerateAnswer, document)


def test_an_empty_document_is_no_answer():
    with pytest.raises(InternalError, match="empty"):
        documents.document_to_answer(answers.GenerateAnswer, documents.document_class(answers.GenerateAnswer)())


def test_an_answer_that_lacks_a_part_is_no_answer():
    document = documents.answer_to_document(ANSWERS[0])
    document.usage = None
    with pytest.raises(ValidationError):
        documents.document_to_answer(answers.GenerateAnswer, document)


def test_an_executors_error_crosses_jina() -> None:
    """Jina passes an exception on as texts; the first one is the error's JSON."""
    (said,) = documents.WireError(QueueFull("full", param="x")).args
    assert error_from_dict(json.loads(said)).to_dict() == QueueFull("full", param="x").to_dict()


@pytest.mark.parametrize("answer", [*ANSWERS, ModelList(data=[])], ids=lambda answer: type(answer).__name__)
def test_an_answer_is_written_as_docarray_would(answer: answers.Body) -> None:
    """Otherwise Jina's clients would read another document than the published one."""
    message, document = DocProto(), documents.answer_to_document(answer)
    documents.write_answer(answer, message)
    if not hasattr(answer, "id"):  # docarray makes a random id, and so do we
        assert len(message.data["id"].text) == len(document.id)
        document.id = message.data["id"].text
    assert message == document.to_protobuf()
    assert documents.document_class(type(answer)).from_protobuf(message) == document
