"""How a caller in Python may write prompts and chats, and what the requests make of it."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel

from run_gpt.api.answers import ChatMessage
from run_gpt.api.chat import Message

Prompt = str | Sequence[int]
"""A text, or its token ids."""
Messages = str | Sequence[Message | ChatMessage | dict[str, Any]]
"""A chat; a text is one user message."""


def is_several(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    """Whether these are several prompts: a list that begins with a token id is one."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
        return False
    return not (prompt and isinstance(prompt[0], int))


def as_prompts(prompt: Prompt | Sequence[Prompt]) -> list[Any]:
    """The prompts as the schema takes them; what is neither a text nor ids is left for it to refuse."""
    prompts = prompt if is_several(prompt) else [prompt]
    return [list(one) if is_ids(one) else one for one in prompts]


def is_ids(value: object) -> bool:
    """Whether a prompt, or a text to embed, is given as token ids."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def as_messages(messages: Messages) -> Any:
    """The messages as plain values; what is neither a text nor a list is left for the schema to refuse."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        return messages
    return [message.model_dump() if isinstance(message, BaseModel) else message for message in messages]
