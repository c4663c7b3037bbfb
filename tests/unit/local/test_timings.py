"""Without these tests an answer's timings could have wrong seconds or rates, or come without a request for them."""

import json
from typing import Any

import pytest
from test_model import model_of

from run_gpt.api import documents
from run_gpt.api.answers import Choice, GenerateAnswer, Usage
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.timings import Timings
from run_gpt.engine.request import TokenEvent
from run_gpt.engine.timing import Timing

ENDED = (
    TokenEvent(0, "hel", 2, cached_tokens=1),
    TokenEvent(0, "lo", 3, "stop", cached_tokens=1, timing=Timing(10.0, 10.5, 11.0, 13.0, 6, 2)),
)
EXPECTED = {
    "queue_seconds": 0.5,
    "prefill_seconds": 0.5,
    "decode_seconds": 2.0,
    "total_seconds": 3.0,
    "prompt_tokens_per_second": 6.0,  # of four tokens one was reused
    "generation_tokens_per_second": 2.0,  # the first of five came with the prefill
    "drafted_tokens": 6,
    "accepted_tokens": 2,
}


def test_an_answer_says_how_long_it_took_when_it_is_asked():
    model, _ = model_of(*ENDED)
    with model:
        assert model.generate("abcd", timings=True).timings.model_dump() == EXPECTED
        chat = model.chat("x", timings=True, max_new_tokens=9)
        assert chat.timings.total_seconds == 3.0
        unasked = json.loads(model.generate("abcd").to_json())
    assert "timings" not in unasked


@pytest.mark.parametrize("call", ["generate_stream", "chat_stream"])
def test_the_last_event_of_a_stream_says_it(call):
    model, _ = model_of(*ENDED)
    with model:
        told = [event.timings for event in getattr(model, call)("abcd", timings=True)]
        assert "timings" not in json.loads(next(iter(getattr(model, call)("abcd"))).to_json())
    assert told[:-1] == [None]
    assert told[-1].decode_seconds == 2.0


def test_of_several_answers_the_stream_says_it_once_when_all_have_ended():
    first, last = Timing(1.0, 2.0, 3.0, 5.0), Timing(1.0, 2.0, 4.0, 9.0)
    model, _ = model_of(TokenEvent(1, "a", 1, "stop", timing=first), TokenEvent(0, "b", 5, "length", timing=last))
    with model:
        events = list(model.generate_stream("abcd", n=2, timings=True))
    assert [event.timings is None for event in events] == [True, False]
    assert events[-1].timings.total_seconds == 8.0
    assert events[-1].timings.generation_tokens_per_second == pytest.approx(4 / 6)


def test_an_answer_of_one_token_has_no_rate_of_tokens():
    """Check the missing rate: an infinite one is not valid JSON."""
    model, _ = model_of(TokenEvent(0, "a", 1, "stop", timing=Timing(1.0, 2.0, 3.0, 3.0)))
    with model:
        timings = json.loads(model.generate("abcd", timings=True).to_json())["timings"]
    assert "generation_tokens_per_second" not in timings
    assert timings["prompt_tokens_per_second"] == 4.0


def test_they_cross_the_wire_as_they_are():
    whole = GenerateAnswer(**completion(0, 3.0))
    for sent in (whole, whole.model_copy(update={"timings": None})):
        assert documents.document_to_answer(GenerateAnswer, documents.answer_to_document(sent)) == sent


def completion(which: int, total: float) -> dict[str, Any]:
    timings = Timings(queue_seconds=total - 2, prefill_seconds=1.0, decode_seconds=1.0, total_seconds=total)
    usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    choices = [Choice(index=0, text="x", finish_reason="stop")]
    return {"id": f"id-{which}", "created": 5, "model": "m", "usage": usage, "choices": choices, "timings": timings}


def test_of_several_prompts_in_openais_api_the_slowest_answer_is_told():
    """Check the joined timings: the answers run at the same time, so sums would be longer than the request."""
    request = CompletionRequest.parse({"prompt": ["a", "b"], "timings": True})
    assert all(native.timings for native in request.natives())
    natives = [GenerateAnswer(**completion(0, 9.0)), GenerateAnswer(**completion(1, 3.0))]
    assert json.loads(request.join(natives).to_json())["timings"]["total_seconds"] == 9.0


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_of_openais_api_ends_with_them_and_no_choices(include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    request = CompletionRequest.parse({"prompt": ["a", "b"], "timings": True, "stream": True, **options})
    writer = request.writer()
    bodies = [
        b
        for which, total in ((0, 9.0), (1, 3.0))
        for b in writer.events(which, GenerateAnswer(**completion(which, total)))
    ]
    bodies += writer.end()
    sent = [json.loads(body.to_json()) for body in bodies]
    assert ["timings" in body for body in sent] == [False, False, True]
    assert (sent[-1]["choices"], sent[-1]["timings"]["total_seconds"]) == ([], 9.0)
    assert ("usage" in sent[-1]) == include_usage
