"""AG2: agents over chats and over responses, with a tool and a form."""

from typing import Literal

from ag2 import Agent
from ag2.config import OpenAIConfig, OpenAIResponsesConfig
from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel

AT = {"model": MODEL, "base_url": BASE_URL, "api_key": KEY, "temperature": 0}


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


async def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    return f"rain in {city}"


async def _all(config: object) -> None:
    agent = Agent("helper", prompt="Be short.", config=config)
    first = await agent.ask(PARIS)
    assert "Paris" in first.body
    assert (await first.ask(PARIS)).body
    assert (await Agent("helper", config=config, tools=[get_weather]).ask(PARIS)) is not None
    formed = await Agent("helper", config=config, response_schema=City).ask(PARIS)
    assert "city" in formed.body


@case("chat: text, history, a tool, a form")
async def chats() -> None:
    await _all(OpenAIConfig(**AT, max_completion_tokens=60))


@case("responses: text, history, a tool, a form")
async def responses() -> None:
    await _all(OpenAIResponsesConfig(**AT, max_output_tokens=60))


run()
