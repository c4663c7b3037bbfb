"""`client.responses`. Without these tests, programs written for OpenAI's responses could get wrong or no answers."""

from typing import Any

import openai
import pytest

from run_gpt.api.openai.responses import ResponseRequest

CAPITAL = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Look up the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


def test_greedy_names_paris_in_events_of_the_right_order(ask: Any) -> None:
    """FourWays checks the stream: created, in progress, the item and its part, deltas, and the done events."""
    answer = ask.responses(CAPITAL)
    assert (answer.only.text, answer.only.finish_reason, answer.usage) == (ANSWER, "stop", (37, 8, 45))


def test_it_is_the_chats_answer(ask: Any) -> None:
    """The system message is given as `instructions` here."""
    turns = [{"role": "system", "content": "You are a parrot."}, {"role": "user", "content": "Who are you?"}]
    chat = ask.chat(turns, max_completion_tokens=8)
    response = ask.responses("Who are you?", instructions="You are a parrot.", max_output_tokens=8)
    assert (response.only.text, response.usage) == (chat.only.text, chat.usage)
    assert response.only.finish_reason == "max_output_tokens"


def test_earlier_turns_come_as_items(ask: Any, client: openai.OpenAI) -> None:
    """The server is stateless: a program sends back the items that it got."""
    first = client.responses.create(model="smollm2", input=CAPITAL, temperature=0)
    turns: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": CAPITAL}]}]
    turns += first.output
    turns.append({"type": "message", "role": "user", "content": "And of Italy?"})
    second = client.responses.create(model="smollm2", input=turns, temperature=0, max_output_tokens=16)
    assert second.usage is not None
    chat = [(CAPITAL, "user"), (ANSWER, "assistant"), ("And of Italy?", "user")]
    as_chat = ask.chat([{"role": role, "content": text} for text, role in chat], max_completion_tokens=16)
    assert (second.output_text, second.usage.input_tokens) == (as_chat.only.text, as_chat.usage[0])


def test_calls_and_their_results_come_as_items(ask: Any) -> None:
    items = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "It rains cats and dogs."},
    ]
    text = ask.responses(items, tools=[WEATHER], max_output_tokens=24).only.text
    turns = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains cats and dogs."},
    ]
    tool = {"type": "function", "function": {name: value for name, value in WEATHER.items() if name != "type"}}
    assert text == ask.chat(turns, tools=[tool], max_completion_tokens=24).only.text


def test_logprobs_are_those_of_the_chat(ask: Any) -> None:
    include = ["message.output_text.logprobs"]
    response = ask.responses(CAPITAL, include=include, top_logprobs=2, max_output_tokens=4).only
    chat = ask.chat(CAPITAL, logprobs=True, top_logprobs=2, max_completion_tokens=4).only
    assert response.tokens == chat.tokens
    assert response.token_logprobs == pytest.approx(chat.token_logprobs, abs=1e-3)
    assert [len(top) for top in response.top] == [2] * 4


def test_the_answer_says_what_was_asked(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 1,
        "metadata": {"order": "7"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "tool_choice": "none",
        "tools": [WEATHER],
        "truncation": "disabled",
        "store": False,
        "user": "anna",
    }
    answer = client.responses.create(model="smollm2", input=CAPITAL, **asked).to_dict()
    assert {name: answer[name] for name in asked} == asked
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_top_p_of_nothing_is_greedy(ask: Any) -> None:
    assert ask.responses(CAPITAL, temperature=1, top_p=0).only.text == ANSWER


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="smollm2", input=CAPITAL, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == ANSWER
        assert stream.get_final_response().output_text == ANSWER


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", sorted(ResponseRequest.FIELDS.refused))
def test_a_field_that_is_not_supported_is_named(client: openai.OpenAI, name: str, stream: bool) -> None:
    """If the field were ignored, users would believe that it has an effect."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="smollm2", input=CAPITAL, stream=stream, extra_body={name: "x"})
    assert (raised.value.param, raised.value.type) == (name, "invalid_request_error")
    assert name in raised.value.message


IMAGE = {"type": "input_image", "image_url": "x"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"no_such_field": 1}, "no_such_field"),
        ({"include": ["reasoning.colours"]}, "include[0]"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"tools": [{"type": "web_research"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "clock"}, "tools": [WEATHER]}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="smollm2", input=CAPITAL, extra_body=body)
    assert raised.value.param == param


def test_another_model_and_too_long_an_input(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gpt-5", input=CAPITAL)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="8192") as long:
        client.responses.create(model="smollm2", input="x " * 9000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
