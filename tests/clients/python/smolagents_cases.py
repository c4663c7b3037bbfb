"""smolagents: its model for OpenAI's API, and an agent that calls tools."""

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from smolagents import OpenAIServerModel, ToolCallingAgent, tool

HI = [{"role": "user", "content": [{"type": "text", "text": PARIS}]}]
model = OpenAIServerModel(model_id=MODEL, api_base=BASE_URL, api_key=KEY, max_tokens=60, temperature=0)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: its name
    """
    return f"rain in {city}"


@case("text and a stream")
def text() -> None:
    assert "Paris" in model.generate(HI).content
    assert "Paris" in "".join(delta.content or "" for delta in model.generate_stream(HI))


@case("tools")
def tools() -> None:
    message = model.generate(HI, tools_to_call_from=[get_weather])
    assert message.tool_calls


@case("an agent's steps")
def agent() -> None:
    helper = ToolCallingAgent(tools=[get_weather], model=model, max_steps=2, verbosity_level=0)
    assert helper.run(PARIS) is not None


run()
