"""Items of a `/v1/responses` request (turns, calls and their results so far), and their conversion to messages."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Tag, ValidationInfo

from run_gpt.api.chat import FunctionCall, Message, ToolCall
from run_gpt.api.field_tables import ITEM, ITEM_PART, REASONING_ITEM
from run_gpt.api.fields import Sifted
from run_gpt.api.parts import join
from run_gpt.api.values import NonEmpty, Text, shown
from run_gpt.errors import InvalidRequest

TextKind = Literal["input_text", "output_text", "text"]
PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Types of parts, with the field that has the text."""


def _joined(value: Any, info: ValidationInfo) -> Any:
    return join(value, PARTS, ITEM_PART, info.context)


def _joined_reasoning(value: Any, info: ValidationInfo) -> Any:
    return join(value, {"reasoning_text": "text"}, ITEM_PART, info.context)


class InputTextPart(BaseModel):
    """A piece of an item's content. A part of an earlier response may have more fields than the text."""

    type: TextKind
    text: Text


Content = Annotated[Text, BeforeValidator(_joined, json_schema_input_type=Text | list[InputTextPart])]


class _Item(Sifted):
    FIELDS: ClassVar = ITEM

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


class ReasoningItem(_Item):
    """Text that the model thought before the item after it."""

    FIELDS: ClassVar = REASONING_ITEM

    type: Literal["reasoning"]
    content: Annotated[Text, BeforeValidator(_joined_reasoning, json_schema_input_type=Text | list[Any])] | None = None

    def message(self) -> Message:
        """Return this item as a message of a chat, to which the items after it are added."""
        return Message(role="assistant", reasoning_content=self.content or "")


def _kind(item: Any) -> str:
    kind = item.get("type") or "message" if isinstance(item, dict) else getattr(item, "type", "message")
    if kind not in KINDS:
        raise InvalidRequest(
            f"input: an item of the type {shown(kind)} is not supported, only {', '.join(KINDS)}", param="input"
        )
    return f"({kind})"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(function_call)")]
    | Annotated[ResultItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")],
    Discriminator(_kind),
]
KINDS = ("message", "function_call", "function_call_output", "reasoning")


def messages_of(items: Sequence[Item]) -> list[Message]:
    """Return the conversation. An assistant's reasoning, the text after it and the calls after that are one message."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, ReasoningItem) and not item.content:
            continue  # it came from elsewhere, as a summary or encrypted
        message, before = item.message(), messages[-1] if messages else None
        if before is not None and before.role == "assistant" and _goes_on(before, message):
            messages[-1] = Message(
                role="assistant",
                reasoning_content=before.reasoning_content,
                content=before.content if message.content is None else message.content,
                tool_calls=[*(before.tool_calls or ()), *(message.tool_calls or ())] or None,
            )
        else:
            messages.append(message)
    return messages


def _goes_on(before: Message, message: Message) -> bool:
    """Return True if an item's message is a part of the assistant's message before it."""
    only_reasoning = before.content is None and not before.tool_calls
    return bool(message.tool_calls) or (only_reasoning and message.role == "assistant" and message.content is not None)


def items_of(value: Any) -> Any:
    """Return the items of an input; a text is a user's message. For a validator."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value
