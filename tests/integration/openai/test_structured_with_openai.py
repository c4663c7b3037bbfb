"""Structured output and enforced calls. Without these tests, programs could get answers that they cannot read."""

import asyncio
import json
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OPTIONS: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Look up the weather.", "parameters": OPTIONS},
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
FLAT: Any = {"type": "function", **WEATHER["function"], "strict": False}
UNKEPT: Any = {"strict": True, "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
QUESTION = "What is the weather in Paris?"
CITY = "Describe Paris as JSON."


class City(pydantic.BaseModel):
    """Fields that the model fills in."""

    name: Literal["Paris", "London"]
    capital: bool
    rivers: list[Literal["Seine", "Thames"]] = pydantic.Field(max_length=2)


SCHEMA = {**City.model_json_schema(), "additionalProperties": False}


def enforced(ask: Any, call: str, schema: Any) -> str:
    """Return the text that the model writes under a schema."""
    if call == "completions":
        form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
        return str(ask.completions(CITY, max_tokens=120, extra_body={"response_format": form}).only.text)
    if call == "chat":
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
        return str(ask.chat(CITY, max_completion_tokens=120, response_format=form).only.text)
    text = {"format": {"type": "json_schema", "name": "city", "schema": schema, "strict": True}}
    return str(ask.responses(CITY, max_output_tokens=120, text=text).only.text)


@pytest.mark.parametrize("call", ["completions", "chat", "responses"])
def test_an_answer_follows_its_schema(ask: Any, call: str) -> None:
    jsonschema.validate(json.loads(enforced(ask, call, SCHEMA)), SCHEMA)


def test_a_json_object(ask: Any) -> None:
    """An open object has no end, so its beginning is checked."""
    for text in (
        ask.chat("Give me JSON.", response_format={"type": "json_object"}, max_completion_tokens=12).only.text,
        ask.responses("Give me JSON.", text={"format": {"type": "json_object"}}, max_output_tokens=12).only.text,
    ):
        assert text.lstrip().startswith("{")


def test_forms_beyond_openais(ask: Any) -> None:
    choice = {"type": "choice", "choice": ["Rome", "Paris"]}
    assert ask.chat("What is the capital of France?", response_format=choice).only.text == "Paris"
    regex = {"type": "regex", "regex": "[0-9]{3}"}
    answer = ask.chat("How many days has a year?", response_format=regex).only
    assert (len(answer.text), answer.text.isdecimal(), answer.finish_reason) == (3, True, "stop")


def test_parse_gives_objects(base_url: str, client: openai.OpenAI) -> None:
    chat: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": CITY}],
        "temperature": 0,
        "response_format": City,
    }
    response: Any = {"model": "smollm2", "input": CITY, "temperature": 0, "text_format": City}
    parsed = client.chat.completions.parse(**chat).choices[0].message.parsed
    assert isinstance(parsed, City)
    assert client.responses.parse(**response).output_parsed == parsed
    with client.chat.completions.stream(**chat) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    with client.responses.stream(**response) as events:
        for _ in events:
            pass
        assert events.get_final_response().output_parsed == parsed

    async def later() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as later_client:
            one = await later_client.chat.completions.parse(**chat)
            other = await later_client.responses.parse(**response)
            return [one.choices[0].message.parsed, other.output_parsed]

    assert asyncio.run(later()) == [parsed, parsed]


parts = st.one_of(
    st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": b}, st.integers(-5, 0), st.integers(0, 500)),
    st.lists(st.sampled_from(["a", "é", '"', None, True, 7, -0.5, [], {"b": "😀"}]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.builds(
        lambda items, most: {"type": "array", "items": items, "maxItems": most},
        st.sampled_from([{"type": "boolean"}, {"type": "string", "maxLength": 3}]),
        st.integers(0, 2),
    ),
)
objects = st.dictionaries(st.text("abcdefé ", min_size=1, max_size=6), parts, min_size=1, max_size=3).map(
    lambda members: {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schema=objects)
def test_any_schema_gives_an_answer_that_is_valid(client: openai.OpenAI, schema: Any) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Make something up."}],
        temperature=1.5,
        seed=1,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str)
def test_an_enforced_call_has_arguments_of_the_schema(ask: Any, choice: Any) -> None:
    tools = [WEATHER, CLOCK] if isinstance(choice, dict) else [WEATHER]
    asked = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    answer = ask.chat(QUESTION, max_completion_tokens=80, **asked).only
    ((name, arguments),) = answer.calls
    assert (name, answer.text, answer.finish_reason) == ("get_weather", None, "tool_calls")
    jsonschema.validate(json.loads(arguments), OPTIONS)


def test_logprobs_of_a_call_make_no_text_of_it(ask: Any) -> None:
    asked: Any = {"tool_choice": "required", "parallel_tool_calls": False}
    chat = ask.chat(QUESTION, tools=[WEATHER], logprobs=True, max_completion_tokens=80, **asked).only
    assert chat.tokens
    assert (len(chat.calls), chat.text) == (1, None)
    response = ask.responses(QUESTION, tools=[FLAT], top_logprobs=0, max_output_tokens=80, **asked).only
    assert (response.calls, response.text) == (chat.calls, None)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=str)
def test_an_enforced_call_in_a_response(ask: Any, choice: Any) -> None:
    answer = ask.responses(
        QUESTION, tools=[FLAT], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=80
    ).only
    ((name, arguments),) = answer.calls
    assert (name, answer.text, answer.finish_reason) == ("get_weather", None, "stop")
    jsonschema.validate(json.loads(arguments), OPTIONS)


def test_a_call_that_is_cut_says_so(ask: Any) -> None:
    chat = ask.chat(QUESTION, tools=[WEATHER], tool_choice="required", max_completion_tokens=14).only
    assert (len(chat.calls), chat.finish_reason) == (1, "length")
    response = ask.responses(QUESTION, tools=[FLAT], tool_choice="required", max_output_tokens=14).only
    assert (response.calls, response.finish_reason) == (chat.calls, "max_output_tokens")


def test_no_call_is_made_where_none_is_allowed(ask: Any) -> None:
    answer = ask.chat(QUESTION, tools=[WEATHER], tool_choice="none", max_completion_tokens=12).only
    assert (answer.calls, answer.finish_reason) == ([], "length")
    assert answer.text


def test_the_round_of_a_call_and_its_result(ask: Any, client: openai.OpenAI) -> None:
    """Run the loop of every program with tools: the call, its result, the answer, which may be another call."""
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    asked = client.chat.completions.create(
        model="smollm2", messages=turns, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=80
    )
    (message,) = (choice.message for choice in asked.choices)
    assert message.tool_calls
    turns.append(message.model_dump())
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "It rains."} for call in message.tool_calls]
    free = ask.chat(turns, tools=[WEATHER], max_completion_tokens=60).only
    assert free.calls or free.text
    assert ask.chat(turns, tools=[WEATHER], tool_choice="none", max_completion_tokens=8).only.text


def test_the_clients_helpers_read_calls(client: openai.OpenAI) -> None:
    class Weather(pydantic.BaseModel):
        city: Literal["Paris", "London"]

    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}], "tools": [tool], "tool_choice": "required"}
    asked |= {"model": "smollm2", "temperature": 0, "parallel_tool_calls": False}
    parsed = client.chat.completions.parse(**asked).choices[0].message.tool_calls
    assert parsed
    assert parsed[0].function.parsed_arguments == Weather(city="Paris")
    with client.chat.completions.stream(**asked) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [Weather(city="Paris")]


def test_the_model_may_choose_between_a_strict_call_and_a_form(client: openai.OpenAI) -> None:
    """OpenAI's helpers make functions strict and ask for a form in the same request."""

    class Weather(pydantic.BaseModel):
        city: Literal["Paris", "London"]

    tools = [openai.pydantic_function_tool(Weather, name="get_weather")]
    asked: Any = {"model": "smollm2", "messages": [{"role": "user", "content": CITY}], "temperature": 0}
    for choice in ({}, {"tool_choice": "auto"}):
        answer = client.chat.completions.parse(**asked, tools=tools, response_format=City, **choice)
        message = answer.choices[0].message
        calls = [call.function.parsed_arguments for call in message.tool_calls or ()]
        assert all(isinstance(call, Weather) for call in calls)
        assert calls or isinstance(message.parsed, City)


def test_strict_functions_leave_words_as_they_are(ask: Any) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    free = ask.chat("Who are you?", tools=[WEATHER], max_completion_tokens=24).only
    held = ask.chat("Who are you?", tools=[strict], max_completion_tokens=24).only
    assert (held.text, held.calls) == (free.text, free.calls)
    flat = ask.responses("Who are you?", tools=[{**FLAT, "strict": True}], max_output_tokens=24).only
    assert flat.text == held.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ("chat", {"response_format": {"type": "yaml"}}, "response_format.type"),
        ("chat", {"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        (
            "chat",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}},
            "response_format",
        ),
        ("chat", {"tools": [{"type": "function", "function": {**WEATHER["function"], **UNKEPT}}]}, "tools"),
        ("chat", {"tools": [WEATHER, WEATHER]}, "tools"),
        (
            "chat",
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": {"type": "colour"}}}}, "text.format"),
        ("responses", {"tools": [{**FLAT, **UNKEPT}]}, "tools"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_enforced_is_named(
    client: openai.OpenAI, path: str, body: dict[str, Any], param: str, stream: bool
) -> None:
    """If the schema were ignored, a program could not read the answer."""
    asked: dict[str, Any] = {"model": "smollm2", "stream": stream, "extra_body": body}
    messages: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError) as raised:
        _ = (
            client.chat.completions.create(messages=messages, **asked)
            if path == "chat"
            else client.responses.create(input="x", **asked)
        )
    assert raised.value.param == param
    assert param.split(".json_schema")[0] in raised.value.message
