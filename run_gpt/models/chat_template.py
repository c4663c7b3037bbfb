"""From the messages of a chat to the token ids of a prompt, by the tokenizer's own template."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from run_gpt.errors import InvalidRequest

_PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The token ids of `messages` (each with `role` and `content`), up to where the assistant's answer begins.

    A tokenizer without a template gets a plain one (`User: ...`), with one warning. Raises InvalidRequest with the
    template's own reason if it refuses the messages, for instance a system message.
    """
    from jinja2 import TemplateError

    turns = [dict(message) for message in messages]
    if not tokenizer.chat_template:
        warnings.warn("this model has no chat template: chats are rendered as plain `Role: text` lines", stacklevel=2)
        text = tokenizer.apply_chat_template(turns, chat_template=_PLAIN, add_generation_prompt=True, tokenize=False)
        return [int(token) for token in tokenizer(text)["input_ids"]]  # with the special tokens that begin a text
    try:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise InvalidRequest(f"messages: this model's chat template says: {error}", param="messages") from error
    return [int(token) for token in ids]
