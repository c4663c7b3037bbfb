"""Semantic Kernel: chats, streams, functions, embeddings."""

from typing import Annotated

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextEmbedding,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function


def client() -> AsyncOpenAI:
    """Return a client for one event loop."""
    return AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


class Weather:
    """A plugin."""

    cities: list[str]

    def __init__(self) -> None:
        self.cities = []

    @kernel_function(name="get_weather", description="Get the weather of a city.")
    def get_weather(self, city: Annotated[str, "its name"]) -> str:
        """Get the weather of a city."""
        self.cities.append(city)
        return f"rain in {city}"


@case("chat: text and a stream")
async def text() -> None:
    service = OpenAIChatCompletion(ai_model_id=MODEL, async_client=client())
    settings = OpenAIChatPromptExecutionSettings(max_tokens=12, temperature=0)
    history = ChatHistory(system_message="Be short.")
    history.add_user_message(PARIS)
    whole = await service.get_chat_message_content(history, settings)
    assert "Paris" in str(whole)
    history.add_message(whole)
    history.add_user_message(PARIS)
    assert "".join([str(part) async for part in service.get_streaming_chat_message_content(history, settings)])


@case("chat: functions are called, and their results sent back")
async def functions() -> None:
    kernel, weather = Kernel(), Weather()
    service = OpenAIChatCompletion(ai_model_id=MODEL, async_client=client())
    kernel.add_service(service)
    kernel.add_plugin(weather, "weather")
    settings = OpenAIChatPromptExecutionSettings(max_tokens=80, temperature=0)
    settings.function_choice_behavior = FunctionChoiceBehavior.Required()
    history = ChatHistory()
    history.add_user_message(PARIS)
    assert await service.get_chat_message_content(history, settings, kernel=kernel)
    assert weather.cities


@case("embeddings")
async def embeddings() -> None:
    vectors = await OpenAITextEmbedding(ai_model_id=MODEL, async_client=client()).generate_embeddings(["a", "b"])
    assert len(vectors) == 2


run()
