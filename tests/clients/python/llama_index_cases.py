"""LlamaIndex: OpenAILike for chats and tools, and its embeddings."""

from typing import Literal

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

AT = {"model": MODEL, "api_base": BASE_URL, "api_key": KEY, "max_retries": 0, "timeout": 120}
llm = OpenAILike(
    **AT, is_chat_model=True, is_function_calling_model=True, context_window=2048, temperature=0, max_tokens=40
)


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    return f"rain in {city}"


@case("chat: text, async and a stream")
async def text() -> None:
    messages = [ChatMessage(role="user", content=PARIS)]
    whole = llm.chat(messages).message.content
    assert "Paris" in whole
    assert (await llm.achat(messages)).message.content == whole
    assert list(llm.stream_chat(messages))[-1].message.content == whole


@case("chat: tools, and their results sent back")
def tools() -> None:
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg=PARIS, tool_required=True)
    calls = llm.get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather"
    result = ChatMessage(role="tool", content="rain", additional_kwargs={"tool_call_id": calls[0].tool_id})
    history = [ChatMessage(role="user", content=PARIS), answer.message]
    results = [result.model_copy(update={"additional_kwargs": {"tool_call_id": call.tool_id}}) for call in calls]
    assert llm.chat([*history, *results]).message


@case("chat: a stream of tools")
def stream_tools() -> None:
    tool = FunctionTool.from_defaults(get_weather)
    *_, last = llm.stream_chat_with_tools([tool], user_msg=PARIS, tool_required=True)
    calls = llm.get_tool_calls_from_response(last)
    assert calls[0].tool_kwargs["city"] in ("Paris", "Rome")


@case("chat: structured output")
def structured() -> None:
    from llama_index.core.prompts import PromptTemplate

    assert llm.structured_predict(City, PromptTemplate(PARIS)).city
    forms = llm.model_copy(update={"should_use_structured_outputs": True})
    assert forms.structured_predict(City, PromptTemplate(PARIS)).city


@case("completions")
def completions() -> None:
    text = OpenAILike(**AT, is_chat_model=False, max_tokens=4, temperature=0).complete("The capital of France is").text
    assert "Paris" in text


@case("embeddings")
def embeddings() -> None:
    embedder = OpenAILikeEmbedding(model_name=MODEL, api_base=BASE_URL, api_key=KEY)
    assert len(embedder.get_text_embedding_batch(["a", "b"])) == 2
    assert embedder.get_query_embedding("a")


run()
