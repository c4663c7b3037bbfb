"""Forms in which a Python caller may write prompts and chats, and their conversion for requests."""

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
    """Return True for several prompts; a list that begins with a token id is one prompt."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
        return False
    return not (prompt and isinstance(prompt[0], int))


def as_prompts(prompt: Prompt | Sequence[Prompt]) -> list[Any]:
    """Return the prompts as the schema takes them. The schema refuses a prompt that is neither text nor ids."""
    prompts = prompt if is_several(prompt) else [prompt]
    return [list(one) if is_ids(one) else one for one in prompts]


def is_ids(value: object) -> bool:
    """Return True if a prompt, or a text to embed, is given as token ids."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def as_messages(messages: Messages) -> Any:
    """Return the messages as plain values. The schema refuses a value that is neither a text nor a list."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        return messages
    return [message.model_dump() if isinstance(message, BaseModel) else message for message in messages]
