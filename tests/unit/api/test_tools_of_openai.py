"""Tools that a server would have to have, and choices among allowed ones. A tool must not be callable by accident."""

from typing import Any

import pytest

from run_gpt.api.field_tables import LEFT_OUT_TOOLS
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import ChatRequest
from run_gpt.errors import InvalidRequest

HI: Any = [{"role": "user", "content": "hi"}]
HOSTED = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}]


def asked(kind: Any, names: list[str], choice: Any = None, *, hosted: bool = False, **options: Any) -> Any:
    """Parse a request with functions of these names, in the form of its endpoint."""
    chat = kind is ChatCompletionRequest
    tools = [{"type": "function", **({"function": {"name": name}} if chat else {"name": name})} for name in names]
    field = {"messages": HI} if chat else {"input": HI}
    return kind.parse({**field, "tools": [*tools, *(HOSTED if hosted else ())], "tool_choice": choice}, **options)


def native(request: Any) -> ChatRequest:
    (made,) = request.natives()
    return made  # type: ignore[no-any-return]


def allow(kind: Any, mode: str, *names: str, hosted: bool = False) -> dict[str, Any]:
    chat = kind is ChatCompletionRequest
    tools = [{"type": "function", **({"function": {"name": name}} if chat else {"name": name})} for name in names]
    allowed = {"mode": mode, "tools": [*tools, *(HOSTED if hosted else ())]}
    return {"type": "allowed_tools", **({"allowed_tools": allowed} if chat else allowed)}


KINDS = pytest.mark.parametrize("kind", [ChatCompletionRequest, ResponseRequest])


@KINDS
def test_hosted_tools_are_left_out_and_named(kind: Any) -> None:
    request = asked(kind, ["f"], "auto", hosted=True)
    assert set(request.ignored) == {"tools.web_search", "tools.namespace"}
    assert [tool.function.name for tool in native(request).tools or ()] == ["f"]
    assert native(request).tool_choice == "auto"
    with pytest.raises(InvalidRequest, match="--strict-fields") as refused:
        asked(kind, ["f"], "auto", hosted=True, rules="strict")
    assert refused.value.param == "tools[1].type"


@KINDS
def test_nothing_but_hosted_tools_is_a_text_unless_one_must_be_called(kind: Any) -> None:
    assert not native(asked(kind, [], "auto", hosted=True)).tools
    assert native(asked(kind, [], "auto", hosted=True)).tool_choice is None
    for choice, says in (("required", "needs tools"), ({"type": "web_search"}, "none of the type 'web_search'")):
        with pytest.raises(InvalidRequest, match=says):
            asked(kind, [], choice, hosted=True)
    with pytest.raises(InvalidRequest, match="none of the type"):
        asked(kind, ["f"], {"type": "web_search"}, hosted=True)


@KINDS
def test_each_known_type_of_tool_is_left_out_and_an_unknown_one_refused(kind: Any) -> None:
    field = {"messages": HI} if kind is ChatCompletionRequest else {"input": HI}
    for name in LEFT_OUT_TOOLS:
        assert kind.parse({**field, "tools": [{"type": name}]}).ignored == (f"tools.{name}",)
    for wrong in ("web_research", None, 5, []):
        with pytest.raises(InvalidRequest) as refused:
            kind.parse({**field, "tools": [{"type": wrong}]})
        assert refused.value.param.startswith("tools[0]")


@KINDS
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_can_be_called(kind: Any, mode: str) -> None:
    made = native(asked(kind, ["f", "g", "h"], allow(kind, mode, "h", "f", hosted=True)))
    assert [tool.function.name for tool in made.tools or ()] == ["f", "h"]
    assert made.tool_choice == mode


@KINDS
def test_allowed_tools_must_be_there(kind: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"'x' is not one of tools \(f, g\)"):
        asked(kind, ["f", "g"], allow(kind, "auto", "x"))
    assert native(asked(kind, ["f"], allow(kind, "auto", hosted=True))).tool_choice == "none"
    with pytest.raises(InvalidRequest, match="needs tools"):
        asked(kind, ["f"], allow(kind, "required", hosted=True))


def test_a_response_repeats_the_choice_as_it_was_given() -> None:
    choice = allow(ResponseRequest, "auto", "f")
    echoed = asked(ResponseRequest, ["f", "g"], choice).echoed()
    assert (echoed["tool_choice"], len(echoed["tools"])) == (choice, 2)
