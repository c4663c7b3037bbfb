"""AutoGen: its model client, and an agent with a tool."""

from typing import Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    ModelFamily,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": ModelFamily.UNKNOWN,
}
HI = [UserMessage(content=PARIS, source="user")]


class City(BaseModel):
    """A form for answers."""

    city: Literal["Paris", "Rome"]


def client(**fields: object) -> OpenAIChatCompletionClient:
    """Return a model client."""
    at = {"base_url": BASE_URL, "api_key": KEY, "max_retries": 0, "model_info": INFO}
    return OpenAIChatCompletionClient(model=MODEL, max_tokens=60, temperature=0, **at, **fields)


@case("text, a stream and a schema")
async def text() -> None:
    assert "Paris" in (await client().create(HI)).content
    *_, last = [part async for part in client().create_stream(HI)]
    assert "Paris" in last.content
    assert City.model_validate_json((await client().create(HI, json_output=City)).content)


@case("a tool, and its result sent back")
async def tools() -> None:
    async def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Get the weather of a city."""
        return f"rain in {city}"

    tool = FunctionTool(get_weather, description="Get the weather of a city.", strict=True)
    called = await client(parallel_tool_calls=False).create(HI, tools=[tool], tool_choice="required")
    (call,) = called.content
    result = FunctionExecutionResult(content="rain", name=call.name, call_id=call.id, is_error=False)
    history = [*HI, AssistantMessage(content=[call], source="a"), FunctionExecutionResultMessage(content=[result])]
    assert (await client().create(history, tools=[tool])).content is not None


@case("an agent")
async def agent() -> None:
    answer = await AssistantAgent("helper", client()).run(task=PARIS)
    assert answer.messages[-1].content


run()
