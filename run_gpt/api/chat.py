"""Parts of a chat: messages, the tools that a model may call, and its calls."""

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from run_gpt.api.field_tables import CALL, FUNCTION, FUNCTION_CALL, MESSAGE, TOOL
from run_gpt.api.fields import Sifted
from run_gpt.api.parts import joined_parts
from run_gpt.api.values import Fault, JsonObject, Text, shown
from run_gpt.errors import InvalidRequest

MAX_TOOLS = 128
MAX_MESSAGES = 4096
MAX_CALLS = 256
"""Most calls in a message."""
MAX_CHOICES = 5000
MAX_TEMPLATE_VALUES = 64
_TEMPLATE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_OF_THE_SERVER = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template")
Role = Literal["system", "developer", "user", "assistant", "tool"]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionCall(Sifted):
    """Name and arguments of a called function."""

    FIELDS: ClassVar = FUNCTION_CALL

    name: Text
    arguments: Text
    """JSON text as the model wrote it; it may be cut off."""


class ToolCall(Sifted):
    """One call by the model."""

    FIELDS: ClassVar = CALL

    id: Text | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(Sifted):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Text


class Message(Sifted):
    """One turn of a chat."""

    FIELDS: ClassVar = MESSAGE

    role: Role
    content: Annotated[
        Text | None, BeforeValidator(joined_parts, json_schema_input_type=Text | list[TextPart] | None)
    ] = None
    """A text, or a list of `{"type": "text", "text": ...}`, whose texts are joined as lines."""
    name: Text | None = None
    """Name of who speaks, for a template that shows it; of a tool's function."""
    reasoning_content: Text | None = None
    """Text that the assistant thought before its answer."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    """Calls of the assistant."""
    tool_call_id: Text | None = None
    """Id of the call that this message of a tool is the result of."""

    @model_validator(mode="before")
    @classmethod
    def _refusal_is_its_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("refusal"), str) and data.get("content") in (None, "", []):
            return {name: value for name, value in data.items() if name != "refusal"} | {"content": data["refusal"]}
        return data

    @model_validator(mode="after")
    def _possible(self) -> "Message":
        if self.content is None and not self.tool_calls and self.reasoning_content is None:
            raise Fault(f"a message of the role {self.role!r} has no content", "content")
        for i, call in enumerate(self.tool_calls or ()):
            if call.id is None:
                raise Fault("a call in tool_calls has no id, by which its result is known", "tool_calls", i, "id")
        for name, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise Fault(f"a message of the role {self.role!r} has {name}", name)
        return self


class Function(Sifted):
    """A function that the model may call."""

    FIELDS: ClassVar = FUNCTION

    name: ToolName
    description: Text | None = None
    parameters: JsonObject | None = None
    """JSON schema of the arguments; default: any object."""
    strict: bool | None = None
    """True: every call follows the schema. Otherwise only calls that `tool_choice` enforces do."""


class Tool(Sifted):
    """A tool: always a function."""

    FIELDS: ClassVar = TOOL

    type: Literal["function"]
    function: Function


class _Named(Sifted):
    name: ToolName


class NamedTool(Sifted):
    """The one function that the model must call."""

    type: Literal["function"]
    function: _Named


def _mode_or_named(value: Any) -> str:
    return "(named)" if isinstance(value, dict | NamedTool) else "(mode)"


ToolMode = Literal["none", "auto", "required"]
ToolChoice = Annotated[
    Annotated[ToolMode, Tag("(mode)")] | Annotated[NamedTool, Tag("(named)")], Discriminator(_mode_or_named)
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class JsonSchemaFormat(Sifted):
    """A JSON schema for the answer."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    schema_: JsonObject = Field(alias="schema")
    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None
    """The schema is always enforced; this is for OpenAI's clients."""


class ResponseFormat(Sifted):
    """Form that the answer must have; it is enforced token by token."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice"]
    json_schema: JsonSchemaFormat | None = None
    regex: Annotated[str, StringConstraints(min_length=1, max_length=16_384)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1)]],
            Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
        ]
        | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _schema_of_an_object(cls, data: Any) -> Any:
        """Take llama.cpp's form of a JSON schema, too."""
        if not isinstance(data, dict) or data.get("type") != "json_object" or data.get("schema") is None:
            return data
        return {"type": "json_schema", "json_schema": {"schema": data["schema"]}}

    @model_validator(mode="after")
    def _what_its_type_needs(self) -> "ResponseFormat":
        for name in ("json_schema", "regex", "choice"):
            if (getattr(self, name) is not None) != (self.type == name):
                needs = "needs" if self.type == name else "does not take"
                raise InvalidRequest(
                    f"response_format: the type {self.type!r} {needs} `{name}`", param=f"response_format.{name}"
                )
        return self

    @property
    def source(self) -> str | None:
        """Schema or list of choices as JSON text, or the regular expression; None for a type that needs none."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_, ensure_ascii=False)
        return self.regex if self.choice is None else json.dumps(self.choice, ensure_ascii=False)


def _template_values(values: dict[str, Any]) -> dict[str, Any]:
    if len(values) > MAX_TEMPLATE_VALUES:
        raise ValueError(f"there are {len(values):,} values, the limit is {MAX_TEMPLATE_VALUES}")
    for name in values:
        if not _TEMPLATE_NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is no name of a template's value")
        if name in _OF_THE_SERVER or name.endswith("_token"):
            raise ValueError(f"{name!r} comes from the server, or is a field of the request itself")
    return values


TemplateValues = Annotated[JsonObject, AfterValidator(_template_values)]


def check_last_message(messages: list[Message], begins: bool | None) -> None:
    """Raise InvalidRequest for a chat whose last message an answer cannot continue. `begins`: add_generation_prompt."""
    last, param = messages[-1], "continue_final_message"
    if last.role != "assistant" or not last.content or last.tool_calls:
        raise InvalidRequest(f"{param}: the last message must be an assistant's, with a text and no calls", param=param)
    if begins:
        raise InvalidRequest(f"{param}: this does not go with add_generation_prompt = True", param=param)


def check_tools(tools: list[Tool] | None, choice: str | NamedTool | None) -> None:
    """Raise InvalidRequest for a choice that the tools do not allow, or for two tools with the same name."""
    names = [tool.function.name for tool in tools or ()]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"tools: there are two functions called {name!r}", param="tools")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        there = ", ".join(names) or "none is given"
        raise InvalidRequest(
            f"tool_choice: {choice.function.name!r} is not one of tools ({there})", param="tool_choice"
        )
    if choice in ("auto", "required") and not names:
        raise InvalidRequest(f"tool_choice = {choice!r}: this needs tools", param="tool_choice")
