"""The fast way from a document's message to an answer gives what docarray's own way gives."""

from typing import Any

import pytest

from run_gpt.api import answers as s
from run_gpt.api import documents
from run_gpt.errors import InternalError, QueueFull
from run_gpt.gateway.messages import answer_of

CACHED = s.PromptTokensDetails(cached_tokens=8)
USAGE = s.Usage(prompt_tokens=9, completion_tokens=2, total_tokens=11, prompt_tokens_details=CACHED)
TOP = [s.TopLogprob(token="é", logprob=-0.5)]
LOGPROBS = s.Logprobs(content=[s.TokenLogprob(token="é", logprob=-1.0, top_logprobs=TOP)])
ABOUT: Any = {"id": "i", "created": 2**31 - 1, "model": "m", "usage": USAGE}
ANSWERS: list[Any] = [
    s.Completion(choices=[s.Choice(index=0, text="é", logprobs=LOGPROBS), s.Choice(index=1, text="")], **ABOUT),
    s.ChatCompletion(
        choices=[s.ChatChoice(index=0, message=s.ChatMessage(content="x"), finish_reason="stop")], **ABOUT
    ),
    s.ChatCompletionChunk(choices=[s.ChatChunkChoice(index=0, delta=s.Delta(role="assistant"))], **ABOUT),
    s.ChatCompletionChunk(choices=[], **ABOUT),
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_survives_its_message(answer: Any) -> None:
    document = documents.answer_to_document(answer)
    read = answer_of(type(answer), document.to_protobuf())
    assert read == answer == documents.document_to_answer(type(answer), document)


def test_an_error_is_raised_as_what_it_is() -> None:
    message = documents.error_to_document(s.Completion, QueueFull("full", param="n")).to_protobuf()
    with pytest.raises(QueueFull, match="full"):
        answer_of(s.Completion, message)


@pytest.mark.parametrize("fields", [{}, {"choices": [{"index": 0, "text": "x"}]}])
def test_what_is_no_answer_is_an_internal_error(fields: Any) -> None:
    """Jina gives an empty document where an Executor failed; a user must not take it for an answer."""
    with pytest.raises(InternalError):
        answer_of(s.Completion, documents.CompletionDocument(**fields).to_protobuf())
