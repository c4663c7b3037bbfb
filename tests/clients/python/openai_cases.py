"""The official Python client: its objects sent back to the server as the next request's history."""

from typing import Any, Literal

import openai
from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, timeout=120, max_retries=0)
ASKED: Any = {"role": "user", "content": PARIS}
FLAT: Any = {"type": "function", "strict": True, **CITY_TOOL["function"]}  # type: ignore[dict-item]


class City(BaseModel):
    """A form for answers, and the parameters of a function."""

    city: Literal["Paris", "Rome"]


@case("chat: text")
def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[ASKED], max_tokens=12, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None


@case("chat: async")
async def async_chat() -> None:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY) as asynchronous:
        answer = await asynchronous.chat.completions.create(model=MODEL, messages=[ASKED], max_tokens=4)
    assert answer.choices[0].finish_reason == "length"


@case("chat: stream")
def stream() -> None:
    options: Any = {"include_usage": True, "include_obfuscation": False}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=[ASKED], max_tokens=8, temperature=0, stream=True, stream_options=options
        )
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None


@case("chat: hints of the newest fields")
def hints() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[ASKED],
        max_completion_tokens=4,
        prompt_cache_key="a user's chat",
        prompt_cache_retention="in_memory",
        safety_identifier="a user",
        metadata={"of": "a test"},
        store=True,
        service_tier="flex",
        verbosity="low",
    )
    assert answer.choices[0].message.content


@case("chat: parse, and the parsed message sent back")
def parse() -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=[ASKED], response_format=City, max_tokens=30)
    message = parsed.choices[0].message
    assert message.parsed is not None
    _goes_on([ASKED, message, ASKED])
    _goes_on([ASKED, message.to_dict(), ASKED])
    _goes_on([ASKED, message.model_dump(), ASKED])


@case("chat: a call, its result, and the call's message sent back")
def tools() -> None:
    tool = openai.pydantic_function_tool(City, name="get_weather")
    parsed = client.chat.completions.parse(
        model=MODEL, messages=[ASKED], tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=60
    )
    message = parsed.choices[0].message
    assert message.tool_calls
    assert isinstance(message.tool_calls[0].function.parsed_arguments, City)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    _goes_on([ASKED, message, result])
    _goes_on([ASKED, message.to_dict(), result])
    _goes_on([ASKED, message.model_dump(), result])


@case("chat: the accumulator of a stream, and its message sent back")
def accumulated() -> None:
    tool = openai.pydantic_function_tool(City, name="get_weather")
    with client.chat.completions.stream(
        model=MODEL, messages=[ASKED], tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=60
    ) as events:
        message = events.until_done().get_final_completion().choices[0].message
    assert message.tool_calls
    assert isinstance(message.tool_calls[0].function.parsed_arguments, City)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "text", "text": "rain"}]}
    _goes_on([ASKED, message, result])


@case("chat: several calls of a stream")
def several_calls() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[ASKED], tools=[CITY_TOOL], tool_choice="required", max_tokens=60
    ) as events:
        chunks = [event.chunk for event in events if event.type == "chunk"]
        calls = events.get_final_completion().choices[0].message.tool_calls or []
    assert calls
    for chunk in chunks:
        indices = [call.index for choice in chunk.choices for call in choice.delta.tool_calls or []]
        assert len(indices) == len(set(indices))


@case("chat: allowed_tools")
def allowed_tools() -> None:
    choice: Any = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "get_weather"}}],
        },
    }
    answer = client.chat.completions.create(
        model=MODEL, messages=[ASKED], tools=[CITY_TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=60
    )
    assert answer.choices[0].message.tool_calls


@case("responses: text, and its items sent back")
def response() -> None:
    first = client.responses.create(model=MODEL, input=PARIS, max_output_tokens=16, temperature=0, store=False)
    assert "Paris" in first.output_text
    history: list[Any] = [ASKED, *first.output, ASKED]
    assert client.responses.create(model=MODEL, input=history, max_output_tokens=16).output
    dumped: list[Any] = [ASKED, *(item.model_dump() for item in first.output), ASKED]
    assert client.responses.create(model=MODEL, input=dumped, max_output_tokens=16).output


@case("responses: stream and parse, and the parsed items sent back")
def response_stream() -> None:
    with client.responses.stream(model=MODEL, input=PARIS, text_format=City, max_output_tokens=30) as events:
        final = events.until_done().get_final_response()
    assert isinstance(final.output_parsed, City)
    history: list[Any] = [ASKED, *final.output, ASKED]
    assert client.responses.create(model=MODEL, input=history, max_output_tokens=16).output
    dumped: list[Any] = [ASKED, *(item.to_dict() for item in final.output), ASKED]
    assert client.responses.create(model=MODEL, input=dumped, max_output_tokens=16).output


@case("responses: the runner of tools")
def response_tools() -> None:
    runner = ResponsesToolRunner(functions=[RegisteredFunction(FLAT, lambda arguments: f"rain in {arguments['city']}")])
    asked: Any = {"model": MODEL, "input": PARIS, "max_output_tokens": 200, "temperature": 0}
    assert runner.run(client, asked, max_steps=2, stream=True).output


@case("responses: what Codex and agents ask for")
def response_hints() -> None:
    answer = client.responses.create(
        model=MODEL,
        input=PARIS,
        max_output_tokens=16,
        include=["reasoning.encrypted_content"],
        reasoning={"summary": "auto", "effort": "low"},
        text={"verbosity": "low"},
        prompt_cache_key="a session",
        metadata={"of": "a test"},
        tools=[FLAT, {"type": "web_search"}],
        tool_choice="none",
        store=False,
    )
    assert answer.metadata == {"of": "a test"}


@case("completions and embeddings")
def others() -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in text.choices[0].text
    vectors = client.embeddings.create(model=MODEL, input=["a", "b"]).data
    assert len(vectors) == 2
    assert len(vectors[0].embedding) > 100


@case("models")
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def _goes_on(messages: list[Any]) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    assert answer.choices[0].finish_reason in ("length", "stop")


run()
