"""Haystack: generators of chats and texts, tools, a pipeline, embedders."""

from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret

AT = {"api_key": Secret.from_token(KEY), "api_base_url": BASE_URL, "model": MODEL}
HI = [ChatMessage.from_system("Be short."), ChatMessage.from_user(PARIS)]
FEW = {"max_tokens": 60, "temperature": 0}


@case("chat: text, a stream and a pipeline")
def text() -> None:
    generator = OpenAIChatGenerator(generation_kwargs=FEW, **AT)
    first = generator.run(HI)["replies"][0]
    assert "Paris" in first.text
    assert generator.run([*HI, first, HI[1]])["replies"]
    parts: list[str] = []
    generator.run(HI, streaming_callback=lambda chunk: parts.append(chunk.content))
    assert "Paris" in "".join(parts)
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder(template=HI))
    pipeline.add_component("llm", OpenAIChatGenerator(generation_kwargs=FEW, **AT))
    pipeline.connect("prompt.prompt", "llm.messages")
    assert pipeline.run({})["llm"]["replies"]


@case("chat: tools, and their results sent back")
def tools() -> None:
    function = CITY_TOOL["function"]
    tool = Tool(
        name=function["name"],
        description=function["description"],
        parameters=function["parameters"],
        function=lambda city: f"rain in {city}",
    )
    generator = OpenAIChatGenerator(tools=[tool], generation_kwargs={**FEW, "parallel_tool_calls": False}, **AT)
    called = generator.run(HI, generation_kwargs={"tool_choice": "required"})["replies"][0]
    call = called.tool_calls[0]
    assert call.arguments["city"] in ("Paris", "Rome")
    result = ChatMessage.from_tool(tool_result=tool.invoke(**call.arguments), origin=call)
    assert generator.run([*HI, called, result])["replies"]


@case("chat: a schema")
def structured() -> None:
    schema = {"name": "city", "strict": True, "schema": CITY_TOOL["function"]["parameters"]}
    asked = {**FEW, "response_format": {"type": "json_schema", "json_schema": schema}}
    assert "city" in OpenAIChatGenerator(generation_kwargs=asked, **AT).run(HI)["replies"][0].text


@case("responses")
def responses() -> None:
    from haystack.components.generators.chat import OpenAIResponsesChatGenerator

    generator = OpenAIResponsesChatGenerator(generation_kwargs={"max_output_tokens": 60, "temperature": 0}, **AT)
    first = generator.run(HI)["replies"][0]
    assert "Paris" in first.text
    assert generator.run([*HI, first, HI[1]])["replies"]


@case("embeddings")
def embeddings() -> None:
    assert OpenAITextEmbedder(**AT).run("a")["embedding"]


run()
