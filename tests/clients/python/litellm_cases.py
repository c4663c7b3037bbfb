"""LiteLLM: chats, tools, its bridges to other APIs, embeddings."""

import os
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks prices up on the internet

import litellm
from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel

litellm.telemetry = False
NAME = f"openai/{MODEL}"
AT = {"api_base": BASE_URL, "api_key": KEY, "timeout": 120, "max_retries": 0}
HI = [{"role": "user", "content": PARIS}]


class City(BaseModel):
    """A form for answers."""

    city: Literal["Paris", "Rome"]


@case("completion: text, async and a stream")
async def text() -> None:
    whole = litellm.completion(NAME, HI, max_tokens=12, temperature=0, **AT)
    assert "Paris" in whole.choices[0].message.content
    assert (await litellm.acompletion(NAME, HI, max_tokens=4, **AT)).choices[0].message.content
    parts = litellm.completion(
        NAME, HI, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}, **AT
    )
    assert "Paris" in "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


@case("completion: as hosted_vllm")
def vllm() -> None:
    whole = litellm.completion(f"hosted_vllm/{MODEL}", HI, max_tokens=4, top_k=5, min_p=0.1, **AT)
    assert whole.choices[0].message.content


@case("completion: tools, and their results sent back")
def tools() -> None:
    asked = {"tools": [CITY_TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
    message = litellm.completion(NAME, HI, **asked, **AT).choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "rain"}
    assert litellm.completion(NAME, [*HI, message, result], max_tokens=4, **AT).choices
    assert litellm.completion(NAME, [*HI, message.model_dump(), result], max_tokens=4, **AT).choices
    chunks = list(litellm.completion(NAME, HI, stream=True, **asked, **AT))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HI)
    assert rebuilt.choices[0].message.tool_calls[0].function.name == "get_weather"


@case("completion: response_format")
def structured() -> None:
    answer = litellm.completion(NAME, HI, response_format=City, max_tokens=30, **AT)
    assert City.model_validate_json(answer.choices[0].message.content)


@case("responses: text and a stream")
async def responses() -> None:
    answer = litellm.responses(input=PARIS, model=NAME, max_output_tokens=16, temperature=0, **AT)
    assert "Paris" in answer.output[0].content[0].text
    events = await litellm.aresponses(input=PARIS, model=NAME, max_output_tokens=16, stream=True, **AT)
    kinds = [event.type async for event in events]
    assert "response.completed" in kinds or "response.incomplete" in kinds


@case("messages: Anthropic's API by its bridge")
async def messages() -> None:
    tool = {"name": "get_weather", "input_schema": CITY_TOOL["function"]["parameters"]}
    asked = {"model": NAME, "messages": HI, "max_tokens": 60, **AT}
    answer = await litellm.anthropic_messages(**asked)
    assert answer["content"][0]["text"]
    called = await litellm.anthropic_messages(
        **asked, tools=[tool], tool_choice={"type": "any"}, system=[{"type": "text", "text": "Be short."}]
    )
    assert called["content"][0]["type"] == "tool_use"


@case("text_completion and embedding")
def others() -> None:
    text = litellm.text_completion(
        "The capital of France is", model=f"text-completion-openai/{MODEL}", max_tokens=4, temperature=0, **AT
    )
    assert "Paris" in text.choices[0].text
    vectors = litellm.embedding(NAME, ["a", "b"], **AT)
    assert len(vectors.data) == 2


run()
