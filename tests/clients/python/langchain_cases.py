"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings."""

from typing import Literal

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

AT = {"base_url": BASE_URL, "api_key": KEY, "max_retries": 0, "timeout": 120}
chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=80, **AT)


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather of a city."""
    return f"rain in {city}"


@case("chat: text, async and a stream")
async def text() -> None:
    messages = [SystemMessage("Be short."), HumanMessage(PARIS)]
    whole = chat.invoke(messages)
    assert "Paris" in whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert (await chat.ainvoke(messages)).content == whole.content
    assert "".join([part.content async for part in chat.astream(messages)]) == whole.content
    assert chat.batch([PARIS, PARIS])[1].content


@case("chat: tools, and their results sent back")
def tools() -> None:
    bound = chat.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
    called = bound.invoke(PARIS)
    (call,) = called.tool_calls
    assert call["args"]["city"] in ("Paris", "Rome")
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert chat.invoke([HumanMessage(PARIS), called, result]).content is not None
    streamed = None
    for part in bound.stream(PARIS):
        streamed = part if streamed is None else streamed + part
    assert streamed.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    named = chat.bind_tools([get_weather], tool_choice="get_weather", strict=True).invoke(PARIS)
    assert named.tool_calls[0]["name"] == "get_weather"


@case("chat: structured output, each method")
def structured() -> None:
    for method in ("json_schema", "function_calling"):
        assert chat.with_structured_output(City, method=method).invoke(PARIS).city
    raw = chat.with_structured_output(City, method="json_schema", include_raw=True).invoke(PARIS)
    assert chat.invoke([HumanMessage(PARIS), raw["raw"], HumanMessage(PARIS)]).content


@case("responses: text, tools, and items sent back")
def responses() -> None:
    answers = ChatOpenAI(model=MODEL, temperature=0, max_tokens=80, use_responses_api=True, **AT)
    first = answers.invoke(PARIS)
    assert "Paris" in first.text
    assert answers.invoke([HumanMessage(PARIS), first, HumanMessage(PARIS)]).text
    called = answers.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False).invoke(PARIS)
    result = get_weather.invoke(called.tool_calls[0])
    assert answers.invoke([HumanMessage(PARIS), called, result]).content is not None
    assert "".join(part.text for part in answers.stream(PARIS))


@case("agent: a loop with create_agent")
def agent() -> None:
    from langchain.agents import create_agent

    state = create_agent(chat, tools=[get_weather], system_prompt="Be short.").invoke(
        {"messages": [HumanMessage(PARIS)]}
    )
    assert state["messages"][-1].content is not None


@case("completions")
def completions() -> None:
    text = OpenAI(model=MODEL, temperature=0, max_tokens=4, **AT).invoke("The capital of France is")
    assert "Paris" in text


@case("embeddings")
def embeddings() -> None:
    embedder = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **AT)
    vectors = embedder.embed_documents(["a", "b"])
    assert len(vectors) == 2
    assert len(embedder.embed_query("a")) == len(vectors[0])


run()
