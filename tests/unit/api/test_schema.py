"""Valid requests, and the error line for an invalid one: the field, the limit, the value."""

import pytest

from run_gpt.api import answers
from run_gpt.api.answers import Choice, GenerateAnswer, PromptTokensDetails, Usage
from run_gpt.api.openai import models
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import InvalidRequest


def _parse(stream=False, **fields):
    return GenerateRequest.parse({"prompt": "hi", **fields}, stream=stream)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"model": "\ud800"}, "model"),
        ({"unknown": 1}, "unknown"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"max_new_tokens": 5.0}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_tokens": -1}, "max_new_tokens"),
        ({"max_tokens": 5, "max_new_tokens": 6}, "max_tokens"),
        ({"n": 2, "num_return_sequences": 3}, "n"),
        ({"stop": "a", "stop_str": "b"}, "stop_str"),
        ({"n": 65}, "num_return_sequences"),
        ({"min_new_tokens": 6, "max_new_tokens": 5}, "min_new_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 0, "do_sample": True}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 2**31}, "seed"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"length_penalty": 1.0}, "length_penalty"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams"),
        ({"num_beams": 2, "n": 3}, "num_return_sequences"),
        ({"num_beams": 2, "seed": 1}, "seed"),
        ({"num_beams": 2, "ignore_eos": True}, "ignore_eos"),
        ({"num_beams": 2, "stop_token_ids": [1]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"suffix": "y", "num_beams": 2}, "suffix"),
        ({"suffix": "y", "echo": True, "logprobs": 1}, "suffix"),
        ({"suffix": ["y"]}, "suffix"),
        ({"prompt": "", "suffix": ""}, "prompt"),
        ({"suffix": "\ud800"}, "suffix"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(fields, param):
    with pytest.raises(InvalidRequest) as raised:
        _parse(**fields)
    assert raised.value.param == param
    assert "\n" not in str(raised.value)
    assert param.split(".")[0] in str(raised.value)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InvalidRequest) as raised:
        _parse(max_new_tokens="x" * 1000)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("fields", [{"num_beams": 2}, {"best_of": 2}])
def test_what_cannot_be_streamed_is_refused_in_a_stream_only(fields):
    assert _parse(**fields)
    with pytest.raises(InvalidRequest, match="streamed"):
        _parse(stream=True, **fields)


def test_both_spellings_mean_the_same():
    one = _parse(max_tokens=5, n=2, stop_str="a")
    assert one == _parse(max_new_tokens=5, num_return_sequences=2, stop=["a"])
    assert one == _parse(max_tokens=5, max_new_tokens=5, n=2, stop=["a"])
    assert (one.sequences, one.stops) == (2, ("a",))


@pytest.mark.parametrize(
    ("fields", "samples"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0, "top_p": 0.9}, False),
        ({"temperature": 1}, True),
        ({"top_k": 50}, True),
        ({"min_p": 0.1}, True),
        ({"temperature": 0.9, "do_sample": False}, False),
        ({"do_sample": True}, True),
    ],
)
def test_when_tokens_are_drawn(fields, samples):
    assert _parse(**fields).samples is samples


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "robot", "content": "hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "hi", "colour": "x"}],
        "hi",
    ],
)
def test_messages_that_are_none(messages):
    with pytest.raises(InvalidRequest, match="messages"):
        ChatRequest.parse({"messages": messages})


def test_the_json_leaves_out_what_does_not_apply_but_keeps_an_open_finish_reason():
    usage = Usage(
        prompt_tokens=9,
        completion_tokens=1,
        total_tokens=10,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=8),
    )
    event = GenerateAnswer(id="x", created=1, model="m", usage=usage, choices=[Choice(index=0, text="hi")])
    assert '"finish_reason":null' in event.to_json()
    assert "logprobs" not in event.to_json()
    assert 'prompt"' not in event.to_json()
    assert '"prompt_tokens_details":{"cached_tokens":8}' in event.to_json()
    assert GenerateAnswer.model_validate_json(event.to_json()) == event


@pytest.mark.parametrize(
    "details", [{}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {"audio_tokens": 0}}]
)
def test_usage_of_servers_that_do_not_count_what_was_cached(details):
    usage = Usage.model_validate({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, **details})
    assert usage.prompt_tokens_details.cached_tokens == 0


def _chat(**fields):
    tool = {"type": "function", "function": {"name": "f", "strict": fields.pop("strict", None)}}
    return ChatRequest.parse({"messages": [{"role": "user", "content": "hi"}], "tools": [tool], **fields})


@pytest.mark.parametrize("name", ["num_beams", "min_new_tokens", "no_repeat_ngram_size"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"strict": True}, "a strict function"),
        ({"strict": True, "tool_choice": "auto"}, "a strict function"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_would_leave_a_grammar_without_a_token_is_refused(name, fields, reason):
    """Otherwise an answer would break off with an error, or not have the promised form."""
    with pytest.raises(InvalidRequest, match=f"{name} = 3: this does not go with {reason}"):
        _chat(**fields, **{name: 3})


@pytest.mark.parametrize("fields", [{}, {"strict": False}, {"strict": True, "tool_choice": "none"}])
def test_functions_that_hold_nothing_refuse_nothing(fields):
    assert _chat(**fields, num_beams=3).num_beams == 3


@pytest.mark.parametrize("choice", [None, "auto", "none", "required"])
def test_a_form_goes_with_tools(choice):
    assert _chat(tool_choice=choice, response_format={"type": "json_object"}).response_format.type == "json_object"


def test_earlier_names_of_answers_stay():
    """Programs annotate the results of calls with them."""
    assert answers.Completion is answers.GenerateAnswer
    assert answers.ChatCompletion is answers.ChatAnswer
    assert answers.ChatCompletionChunk is answers.ChatEvent
    assert models.ModelCard is models.Model
