"""Pydantic AI: agents over chats and over responses, with tools, forms and streams."""

from typing import Literal

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE_URL, api_key=KEY)
chats = OpenAIChatModel(MODEL, provider=provider)
responses = OpenAIResponsesModel(MODEL, provider=provider)
FEW = {"max_tokens": 60, "temperature": 0}


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


async def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    return f"rain in {city}"


async def _talks(model: object) -> None:
    agent = Agent(model, model_settings=FEW, tools=[get_weather], system_prompt="Be short.")
    first = await agent.run(PARIS)
    assert first.output
    assert (await agent.run(PARIS, message_history=first.all_messages())).output


@case("chat: text, and its history sent back")
async def text() -> None:
    await _talks(chats)


@case("chat: a stream")
async def stream() -> None:
    async with Agent(chats, model_settings=FEW).run_stream(PARIS) as result:
        assert "".join([part async for part in result.stream_text(delta=True)])


@case("chat: output by a tool, and by a schema")
async def structured() -> None:
    for output in (ToolOutput(City), NativeOutput(City)):
        first = await Agent(chats, model_settings=FEW, output_type=output).run(PARIS)
        assert first.output.city
        again = await Agent(chats, model_settings=FEW, output_type=output).run(
            PARIS, message_history=first.all_messages()
        )
        assert again.output.city


@case("responses: text, and its history sent back")
async def responses_text() -> None:
    await _talks(responses)


@case("responses: output by a tool, and by a schema")
async def responses_structured() -> None:
    for output in (ToolOutput(City), NativeOutput(City)):
        assert (await Agent(responses, model_settings=FEW, output_type=output).run(PARIS)).output.city


run()
