"""Tools that a request of OpenAI's API has and this server has not, and the choice among those that are allowed."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from run_gpt.api.chat import MAX_TOOLS, NamedTool, Tool, ToolMode, ToolName
from run_gpt.api.field_tables import HOSTED, LEFT_OUT_TOOLS
from run_gpt.api.fields import Intake, Sifted
from run_gpt.api.values import Fault
from run_gpt.errors import InvalidRequest

Choice = ToolMode | NamedTool | None


def _is_left_out(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(kind := tool.get("type"), str) and kind in LEFT_OUT_TOOLS


def _without_left_out(tools: Any) -> Any:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        return tools
    return [tool for tool in tools if not _is_left_out(tool)]


class NamedResponseTool(Sifted):
    """The one function that the model must call, in the form of `/v1/responses`."""

    type: Literal["function"]
    name: ToolName


class _Allowed(Sifted):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS, fail_fast=True), BeforeValidator(_without_left_out)]


class AllowedTools(Sifted):
    """The functions that the model may call, or must call one of."""

    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


class AllowedResponseTools(Sifted):
    """The same in the form of `/v1/responses`."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[NamedResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True), BeforeValidator(_without_left_out)
    ]


def _kind(value: Any) -> str:
    if not isinstance(value, dict | Sifted):
        return "(mode)"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "(allowed)" if kind == "allowed_tools" else "(named)"


ChatToolChoice = Annotated[
    Annotated[ToolMode, Tag("(mode)")]
    | Annotated[NamedTool, Tag("(named)")]
    | Annotated[AllowedTools, Tag("(allowed)")],
    Discriminator(_kind),
]
ResponseToolChoice = Annotated[
    Annotated[ToolMode, Tag("(mode)")]
    | Annotated[NamedResponseTool, Tag("(named)")]
    | Annotated[AllowedResponseTools, Tag("(allowed)")],
    Discriminator(_kind),
]


def leave_out_tools(data: Any, context: Any) -> Any:
    """Return a request's fields without the tools that this server has not; the Intake `context` gets their types.

    Raises Fault if one of them must be called, or with strict rules.
    """
    if not isinstance(data, dict):
        return data
    choice = data.get("tool_choice")
    if isinstance(choice, dict) and _is_left_out(choice):
        raise Fault(f"{HOSTED}: none of the type {choice['type']!r} can be called", "tool_choice", "type")
    tools = data.get("tools")
    kept = _without_left_out(tools)
    if isinstance(tools, list) and len(kept) < len(tools):
        intake = context if isinstance(context, Intake) else Intake()
        for i, tool in enumerate(tools):
            if _is_left_out(tool):
                if intake.rules == "strict":
                    raise Fault(f"{HOSTED}, and the server has --strict-fields", "tools", i, "type")
                intake.ignore(f"tools.{tool['type']}")
        data = {**data, "tools": kept}
    if kept == [] and choice == "auto":
        data = {**data, "tool_choice": None}
    return data


def allowed(tools: list[Tool] | None, mode: ToolMode, names: list[str]) -> tuple[list[Tool], ToolMode]:
    """Return the tools with these names, and the mode of the choice among them. Raises InvalidRequest."""
    there = [tool.function.name for tool in tools or ()]
    for name in names:
        if name not in there:
            message = f"tool_choice: {name!r} is not one of tools ({', '.join(there) or 'none is given'})"
            raise InvalidRequest(message, param="tool_choice")
    kept = [tool for tool in tools or () if tool.function.name in names]
    return kept, mode if kept or mode == "required" else "none"
