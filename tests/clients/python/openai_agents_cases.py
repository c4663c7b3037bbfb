"""OpenAI's agents, over responses and over chats."""

import contextlib
from typing import Literal

from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
cities: list[str] = []


class City(BaseModel):
    """A form for answers."""

    city: Literal["Paris", "Rome"]


@function_tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    cities.append(city)
    return f"rain in {city}"


def agent(kind: type, **fields: object) -> Agent:
    """Return an agent over a kind of model."""
    model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0))
    settings = ModelSettings(max_tokens=60, temperature=0, tool_choice=fields.pop("tool_choice", None))
    return Agent(name="a", instructions="Be short.", model=model, model_settings=settings, **fields)


async def _all(kind: type) -> None:
    first = await Runner.run(agent(kind), PARIS)
    assert "Paris" in first.final_output
    history = [*first.to_input_list(), {"role": "user", "content": PARIS}]
    assert (await Runner.run(agent(kind), history)).final_output
    with contextlib.suppress(MaxTurnsExceeded):  # a small model calls again and again
        await Runner.run(agent(kind, tools=[get_weather], tool_choice="required"), PARIS, max_turns=2)
    assert cities.pop() in ("Paris", "Rome")
    assert (await Runner.run(agent(kind, output_type=City), PARIS)).final_output.city
    streamed = Runner.run_streamed(agent(kind), PARIS)
    assert [event async for event in streamed.stream_events()]
    assert "Paris" in streamed.final_output


@case("responses: text, history, tools, a form, a stream")
async def responses() -> None:
    await _all(OpenAIResponsesModel)


@case("chat: text, history, tools, a form, a stream")
async def chats() -> None:
    await _all(OpenAIChatCompletionsModel)


run()
