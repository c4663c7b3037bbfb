"""Turns of a `/v1/messages` request: blocks of texts, calls, results and thinking, and their conversion to messages."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from run_gpt.api.anthropic.fields import LEFT_OUT_BLOCKS, REFUSED_BLOCKS, TEXT, THINKING, TOOL_RESULT, TOOL_USE
from run_gpt.api.chat import MAX_CALLS, FunctionCall, Message, ToolCall
from run_gpt.api.fields import Intake, Sifted
from run_gpt.api.parts import MAX_PARTS, join
from run_gpt.api.values import Fault, JsonObject, NonEmpty, Text, shown

_BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
"""Line that Claude Code writes before its instructions. It differs in each request, so no prefix would be reused."""


def _joined(value: Any, info: ValidationInfo) -> Any:
    return join(value, {"text": "text"}, TEXT, info.context)


class TextBlock(Sifted):
    """A text."""

    FIELDS: ClassVar = TEXT

    type: Literal["text"]
    text: Text


class ToolUseBlock(Sifted):
    """A call that the model made earlier."""

    FIELDS: ClassVar = TOOL_USE

    type: Literal["tool_use"]
    id: NonEmpty
    name: Text
    input: JsonObject

    def call(self) -> ToolCall:
        """Return this block as a call of a chat."""
        arguments = json.dumps(self.input, ensure_ascii=False)
        return ToolCall(id=self.id, function=FunctionCall(name=self.name, arguments=arguments))


class ToolResultBlock(Sifted):
    """Result of a call."""

    FIELDS: ClassVar = TOOL_RESULT

    type: Literal["tool_result"]
    tool_use_id: NonEmpty
    content: Annotated[Text, BeforeValidator(_joined, json_schema_input_type=Text | list[TextBlock])] = ""


class ThinkingBlock(Sifted):
    """Text that the model thought before the block after it."""

    FIELDS: ClassVar = THINKING

    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = None
    """Signature that the block had in an answer; it is not read."""


KINDS = ("text", "tool_use", "tool_result", "thinking")


def _kind(block: Any) -> str:
    return f"({block.get('type') if isinstance(block, dict) else getattr(block, 'type', None)})"


Block = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")],
    Discriminator(_kind),
]


def _blocks(value: Any, info: ValidationInfo) -> Any:
    """Return the blocks of a content, without those that nothing here can read; a text is one. Raises Fault."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list) or len(value) > MAX_PARTS:
        return value
    kept = []
    for at, block in enumerate(value):
        kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
        if not isinstance(kind, str) or kind not in (*KINDS, *LEFT_OUT_BLOCKS):
            why = REFUSED_BLOCKS.get(str(kind), f"there are {', '.join(KINDS)}")
            raise Fault(f"a block of the type {shown(kind)} is not supported here: {why}", at, "type")
        if kind in KINDS:
            kept.append(block)
        elif isinstance(info.context, Intake):
            info.context.ignore(f"messages.content.{kind}")
    return kept


_List = Annotated[list[Block], Field(max_length=MAX_PARTS, fail_fast=True)]
_Texts = Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)]
Blocks = Annotated[_List, BeforeValidator(_blocks, json_schema_input_type=Text | _List)]
System = Annotated[_Texts, BeforeValidator(_blocks, json_schema_input_type=Text | _Texts)]
_OF_ROLES: dict[str, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking"),
    "system": ("text",),
}
"""Types of blocks that a turn may have, by its role."""


class Turn(Sifted):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _possible(self) -> "Turn":
        for at, block in enumerate(self.content):
            if block.type not in _OF_ROLES[self.role]:
                raise Fault(f"a turn of the role {self.role!r} has no {block.type}", "content", at, "type")
        if (calls := sum(isinstance(block, ToolUseBlock) for block in self.content)) > MAX_CALLS:
            raise Fault(f"a turn has {calls} calls, the limit is {MAX_CALLS}", "content")
        return self

    def messages(self) -> Iterator[Message]:
        """Yield this turn as messages of a chat: one, or more if it has results of calls."""
        if self.role == "assistant":
            yield self._answer()
            return
        texts: list[str] = []
        for block in self.content:
            if isinstance(block, TextBlock):
                texts.append(block.text)
            elif isinstance(block, ToolResultBlock):
                if texts:
                    yield _said(self.role, texts)
                texts = []
                yield Message(role="tool", tool_call_id=block.tool_use_id, content=block.content)
        if texts or not self.content:
            yield _said(self.role, texts)

    def _answer(self) -> Message:
        texts = [block.text for block in self.content if isinstance(block, TextBlock)]
        thoughts = [block.thinking for block in self.content if isinstance(block, ThinkingBlock)]
        calls = [block.call() for block in self.content if isinstance(block, ToolUseBlock)]
        return Message(
            role="assistant",
            content="\n".join(texts) if texts or not calls else None,
            reasoning_content="\n".join(thoughts) or None,
            tool_calls=calls or None,
        )


def _said(role: Literal["user", "system"], texts: Sequence[str]) -> Message:
    return Message(role=role, content="\n".join(texts))


def system_text(blocks: Sequence[TextBlock]) -> str:
    """Return the instructions, without Claude Code's line for billing."""
    texts = [_BILLING.sub("", block.text, count=1) if _BILLING.match(block.text) else block.text for block in blocks]
    return "\n\n".join(text for text in texts if text)


def messages_of(system: Sequence[TextBlock], turns: Sequence[Turn]) -> list[Message]:
    """Return the conversation as a chat, in which turns of the same role in a row are one message.

    Many templates take a system message at the beginning only. So instructions that come later are the user's.
    """
    text = system_text(system)
    messages = [Message(role="system", content=text)] if text else []
    for message in chain.from_iterable(turn.messages() for turn in turns):
        last = messages[-1] if messages else None
        role = "user" if message.role == "system" and last is not None and last.role != "system" else message.role
        if last is not None and last.role == role and role in ("system", "user"):
            messages[-1] = Message(role=role, content=f"{last.content}\n{message.content}")
        else:
            messages.append(message.model_copy(update={"role": role}))
    return messages
