"""Mirascope: calls over chats and over responses, with tools, forms and streams."""

from typing import Literal

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from mirascope import llm
from pydantic import BaseModel

llm.register_provider("openai", base_url=BASE_URL, api_key=KEY)
CHATS, RESPONSES = f"openai/{MODEL}:completions", f"openai/{MODEL}:responses"
FEW = {"max_tokens": 60, "temperature": 0}


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


@llm.tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    return f"rain in {city}"


def _all(name: str) -> None:
    @llm.call(name, **FEW)
    def ask() -> str:
        return PARIS

    @llm.call(name, format=City, **FEW)
    def form() -> str:
        return PARIS

    @llm.call(name, tools=[get_weather], **FEW)
    def helped() -> str:
        return PARIS

    first = ask()
    assert first.text()
    assert first.resume(PARIS).text()
    assert "".join(ask.stream().text_stream())
    assert form().parse().city
    assert helped() is not None


@case("chat: text, history, a stream, a form, a tool")
def chats() -> None:
    _all(CHATS)


@case("responses: text, history, a stream, a form, a tool")
def responses() -> None:
    _all(RESPONSES)


run()
