"""Anthropic's Python client: its messages whole and streamed, its calls, and its messages sent back."""

from typing import Any

import anthropic
from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run

SERVER = BASE_URL.removesuffix("/v1")
client = anthropic.Anthropic(base_url=SERVER, api_key=KEY, timeout=120, max_retries=0)
ASKED: Any = {"role": "user", "content": PARIS}
GREEDY = {"temperature": 0}
FUNCTION: Any = CITY_TOOL["function"]
TOOL: Any = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
    "cache_control": {"type": "ephemeral"},
}


@case("messages: text")
def text() -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=12, extra_body=GREEDY, messages=[ASKED], system="You help."
    )
    assert "Paris" in message.content[0].text
    assert message.usage.input_tokens > 0


@case("messages: async")
async def asynchronous_text() -> None:
    async with anthropic.AsyncAnthropic(base_url=SERVER, api_key=KEY) as asynchronous:
        message = await asynchronous.messages.create(model=MODEL, max_tokens=4, messages=[ASKED])
        assert message.stop_reason == "max_tokens"
        async with asynchronous.messages.stream(
            model=MODEL, max_tokens=12, extra_body=GREEDY, messages=[ASKED]
        ) as stream:
            assert "Paris" in "".join([part async for part in stream.text_stream])


@case("messages: a stream, and its message sent back")
def stream() -> None:
    with client.messages.stream(model=MODEL, max_tokens=12, extra_body=GREEDY, messages=[ASKED]) as events:
        kinds = [event.type for event in events]
        message = events.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert "Paris" in message.content[0].text
    history: Any = [ASKED, {"role": "assistant", "content": message.content}, {"role": "user", "content": "Sure?"}]
    assert client.messages.create(model=MODEL, max_tokens=4, messages=history).content


@case("messages: a call, its result, and the call's message sent back")
def calls() -> None:
    choice: Any = {"type": "tool", "name": TOOL["name"]}
    asked: Any = {"model": MODEL, "max_tokens": 60, "tools": [TOOL]}
    message = client.messages.create(**asked, messages=[ASKED], tool_choice=choice)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert call.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**asked, messages=[ASKED], tool_choice={"type": "any"}) as events:
        streamed = events.get_final_message()
    assert any(block.type == "tool_use" and block.input["city"] for block in streamed.content)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Sunny"}]}
    history: Any = [ASKED, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, messages=history).content


@case("messages: stop sequences, a beginning, hints")
def options() -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=40,
        extra_body=GREEDY,
        stop_sequences=["Paris"],
        metadata={"user_id": "a user"},
        service_tier="auto",
        system=[{"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}}],
        messages=[ASKED],
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")
    begun: Any = [ASKED, {"role": "assistant", "content": "The capital is"}]
    assert client.messages.create(model=MODEL, max_tokens=6, extra_body=GREEDY, messages=begun).content


@case("messages: the count of tokens")
def count() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=[ASKED], system="You help.", tools=[TOOL])
    used = client.messages.create(
        model=MODEL, max_tokens=1, messages=[ASKED], system="You help.", tools=[TOOL], tool_choice={"type": "none"}
    ).usage
    assert counted.input_tokens > 10
    assert used.input_tokens + (used.cache_read_input_tokens or 0) > 0


@case("messages: errors are those of its API")
def errors() -> None:
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.test/"}}]}]
    for model, messages, kind, said in (
        ("no-such-model", [ASKED], "not_found_error", "no-such-model"),
        (MODEL, image, "invalid_request_error", "messages[0].content[0].type"),
    ):
        found: Any = None
        try:
            client.messages.create(model=model, max_tokens=4, messages=messages)
        except anthropic.APIStatusError as error:
            found = error.body
        assert found["error"]["type"] == kind
        assert said in found["error"]["message"]


run()
