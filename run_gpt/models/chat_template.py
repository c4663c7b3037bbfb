"""From the messages of a chat to the token ids of a prompt, and the tokens that end an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.templates import PLAIN, ChatTemplate


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template: ChatTemplate | None = None
) -> list[int]:
    """The token ids of `messages` (each with `role` and `content`), up to where the assistant's answer begins.

    By the tokenizer's own template; by `template`, else PLAIN, where it has none. Raises InvalidRequest with the
    template's own reason if it refuses the messages, for instance a system message.
    """
    from jinja2 import TemplateError

    turns = [dict(message) for message in messages]
    if not tokenizer.chat_template:
        jinja = (template or PLAIN).jinja
        text = tokenizer.apply_chat_template(turns, chat_template=jinja, add_generation_prompt=True, tokenize=False)
        return [int(token) for token in tokenizer(text)["input_ids"]]  # with the special tokens that begin a text
    try:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise InvalidRequest(f"messages: this model's chat template says: {error}", param="messages") from error
    return [int(token) for token in ids]


def end_with_turns(model: Any, tokenizer: Any, template: ChatTemplate) -> ChatTemplate:
    """Let the template's stop texts that are tokens of the tokenizer end the model's answers; returns the rest.

    As tokens, since a special token leaves no text behind in which it could be found.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [vocabulary[text] for text in template.stop if text in vocabulary]
    if ends:
        settings = model.generation_config
        known = model.config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
        before = known if isinstance(known, list) else [] if known is None else [known]
        settings.eos_token_id = list(dict.fromkeys([*before, *ends]))
    return replace(template, stop=tuple(text for text in template.stop if text not in vocabulary))
