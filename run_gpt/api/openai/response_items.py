"""Items of a `/v1/responses` request (turns, calls and their results so far), and their conversion to messages."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag

from run_gpt.api.chat import FunctionCall, Message, ToolCall
from run_gpt.api.values import NonEmpty, Text, joined_parts, shown
from run_gpt.errors import InvalidRequest

TextKind = Literal["input_text", "output_text", "text"]
TEXT_PARTS: tuple[str, ...] = get_args(TextKind)


def _joined(value: Any) -> Any:
    return joined_parts(value, kinds=TEXT_PARTS, param="input")


class InputTextPart(BaseModel):
    """A piece of an item's content. A part of an earlier response may have more fields than the text."""

    type: TextKind
    text: Text


Content = Annotated[Text, BeforeValidator(_joined, json_schema_input_type=Text | list[InputTextPart])]


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Text | None = None
    status: Text | None = None


class MessageItem(_Item):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    def message(self) -> Message:
        """Return this item as a message of a chat."""
        return Message(role=self.role, content=self.content)


class CallItem(_Item):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: NonEmpty
    name: Text
    arguments: Text

    def message(self) -> Message:
        """Return this item as a message of a chat."""
        call = ToolCall(id=self.call_id, function=FunctionCall(name=self.name, arguments=self.arguments))
        return Message(role="assistant", tool_calls=[call])


class ResultItem(_Item):
    """Result of a call."""

    type: Literal["function_call_output"]
    call_id: NonEmpty
    output: Content

    def message(self) -> Message:
        """Return this item as a message of a chat."""
        return Message(role="tool", tool_call_id=self.call_id, content=self.output)


def _kind(item: Any) -> str:
    kind = item.get("type") or "message" if isinstance(item, dict) else getattr(item, "type", "message")
    if kind not in ("message", "function_call", "function_call_output"):
        raise InvalidRequest(
            f"input: an item of the type {shown(kind)} is not supported, only message, function_call and "
            "function_call_output",
            param="input",
        )
    return f"({kind})"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(function_call)")]
    | Annotated[ResultItem, Tag("(function_call_output)")],
    Discriminator(_kind),
]


def items_of(value: Any) -> Any:
    """Return the items of an input; a text is a user's message. For a validator."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value
