"""Options of a chat's rendering: values for the template, the point where the prompt ends, and names of turns."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from run_gpt.errors import InvalidRequest

Messages = Sequence[Mapping[str, Any]]
Make = Callable[[Messages], str]
"""Function that makes a chat's text of its messages."""


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """Options of one chat's rendering."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Values for the template by name, beside the messages and tools."""
    add_prompt: bool = True
    """True: the prompt ends with the beginning of an answer."""
    continue_last: bool = False
    """True: the prompt ends within the last message, an assistant's with a text, which the answer continues."""

    @property
    def begins_answer(self) -> bool:
        """True when the template writes the beginning of an answer."""
        return self.add_prompt and not self.continue_last


def rendered(messages: Messages, options: TemplateOptions, make: Make) -> str:
    """Return the text of a chat up to the point where the answer begins.

    Raises InvalidRequest for a name of a message that the template does not show, and for a last message to continue
    that it does not show.
    """
    if not options.continue_last:
        text = make(messages)
        _check_names(messages, text, make)
        return text
    mark = secrets.token_hex(16)
    last = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark} "}
    marked = [*messages[:-1], last]
    text = make(marked)
    _check_names(marked, text, make)
    before, found, after = text.rpartition(mark)
    if not found:
        raise InvalidRequest(
            "continue_final_message: this model's chat template does not show the last message",
            param="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()  # else the template trims texts


def _check_names(messages: Messages, text: str, make: Make) -> None:
    """Raise InvalidRequest for a role whose names make no difference to the text.

    A tool's name is its function's, and a name that is the role itself, which clients send, tells nothing more.
    """
    backwards = reversed(list(enumerate(messages)))
    named = {one["role"]: i for i, one in backwards if one.get("name") not in (None, "", one["role"])}
    for role in named.keys() - {"tool"}:
        nameless = [
            {key: value for key, value in message.items() if key != "name" or message["role"] != role}
            for message in messages
        ]
        if make(nameless) == text:
            param = f"messages[{named[role]}].name"
            raise InvalidRequest(
                f"{param}: this model's chat template shows no name of a message of the role {role!r}: "
                "leave it out, or write it in the content",
                param=param,
            )
