"""Inspect: an evaluation with its provider for servers like OpenAI's, with a tool."""

from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run
from inspect_ai.model import ChatMessageTool, ChatMessageUser, GenerateConfig, ResponseSchema, get_model
from inspect_ai.tool import ToolInfo, ToolParams
from inspect_ai.util import JSONSchema

FEW = GenerateConfig(max_tokens=60, temperature=0, max_retries=0)


def model(**arguments: object) -> object:
    """Return the model."""
    return get_model(f"openai-api/here/{MODEL}", base_url=BASE_URL, api_key=KEY, config=FEW, **arguments)


async def _all(**arguments: object) -> None:
    asked = ChatMessageUser(content=PARIS)
    first = await model(**arguments).generate([asked])
    assert "Paris" in first.completion
    assert (await model(**arguments).generate([asked, first.message, asked])).completion
    function = CITY_TOOL["function"]
    parameters = ToolParams.model_validate(function["parameters"])
    tool = ToolInfo(name=function["name"], description=function["description"], parameters=parameters)
    called = await model(**arguments).generate([asked], tools=[tool], tool_choice="any")
    (call, *_) = called.message.tool_calls
    result = [ChatMessageTool(content="rain", tool_call_id=each.id) for each in called.message.tool_calls]
    assert call.arguments["city"] in ("Paris", "Rome")
    assert await model(**arguments).generate([asked, called.message, *result], tools=[tool])


@case("chat: text, history, a tool")
async def chats() -> None:
    await _all()


@case("chat: a schema")
async def schema() -> None:
    form = JSONSchema.model_validate(CITY_TOOL["function"]["parameters"])
    config = GenerateConfig(response_schema=ResponseSchema(name="city", json_schema=form))
    assert "city" in (await model().generate(PARIS, config=config)).completion


@case("responses: text, history, a tool")
async def responses() -> None:
    await _all(responses_api=True)


run()
