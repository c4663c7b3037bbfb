"""Conversion of a chat's messages to the token ids of a prompt, and the tokens that end an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.marks import Marks
from run_gpt.models.rendering import render
from run_gpt.models.template_options import TemplateOptions, rendered
from run_gpt.models.templates import PLAIN, ChatTemplate
from run_gpt.models.tokenizer import encode
from run_gpt.models.tools import Function, ToolFormat, find_tool_format, tool_template
from run_gpt.models.tools.prompt import (
    description,
    has_calls,
    in_system_turn,
    in_user_turn,
    native_turns,
    plain_turns,
    without_empty,
)


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate | None = None,
    *,
    tools: Sequence[Function] = (),
    tool_format: ToolFormat | None = None,
    parallel: bool = True,
    jinja: str | None = None,
    options: TemplateOptions = TemplateOptions(),  # noqa: B008  (frozen)
    check: Callable[[str], None] = lambda text: None,
    marks: Marks | None = None,
) -> list[int]:
    """Return the token ids of `messages`, up to the point where the assistant's answer begins.

    A message has `role` and `content`. An assistant message may have `tool_calls` (`id`, `type`, and `function` with
    `name` and `arguments`, a JSON text). A `tool` message has the `tool_call_id` of the call whose result it is. The
    tokenizer's own template is used, else `template`, else PLAIN. A template that does not support `tools` gets plain
    turns, with a description of the tools in the system message, which offers several calls in one answer if
    `parallel`. `tool_format` defaults to the result of `find_tool_format`. Raises InvalidRequest with the template's
    reason if it refuses the messages. `jinja`: text of a template that is used instead. `options`: see TemplateOptions.
    `check` gets the text before it is tokenised, and may raise. `marks` of the tokenizer: texts in messages, tools and
    template values that look like special tokens are text; None: they are special tokens.
    """
    requested, own = jinja is not None, jinja or tool_template(tokenizer)
    if own is None:
        jinja = (template or PLAIN).jinja
    chat = _Chat(tokenizer, marks, options)
    if (tools or has_calls(messages)) and (requested or tool_format is None):
        tool_format = _tool_format(own, tokenizer, tool_format)

    def make(messages: Sequence[Mapping[str, Any]]) -> str:
        if tool_format is None or not (tools or has_calls(messages)):
            return chat.render([without_empty(message) for message in messages], jinja)
        if tool_format.native:
            told = [function.as_tool() for function in tools]
            return chat.render(native_turns(messages, tool_format), own, told or None)
        turns = plain_turns(messages, tool_format)
        return _described(chat, turns, jinja, description(tools, tool_format, parallel=parallel))

    text = rendered(messages, options, make)
    check(chat.plain(text))
    # The tokenizer's own template already writes the special tokens that begin a text.
    return chat.encode(text, special=own is None)


class _Chat:
    """Chat on its way to token ids. Its texts have a guard in each mark (see marks.py)."""

    def __init__(self, tokenizer: Any, marks: Marks | None, options: TemplateOptions):
        self._tokenizer, self._marks, self._options = tokenizer, marks, options
        self._guard = ""

    def render(self, turns: list[dict[str, Any]], jinja: str | None, tools: Any = None) -> str:
        """Return the text of the chat (see rendering.py), with guards."""
        options = self._options
        if self._marks is not None:
            template = jinja if jinja is not None else self._tokenizer.get_chat_template(None, tools)
            turns, (tools, values), guard = self._marks.guarded(turns, (tools, options.values), template)
            options, self._guard = replace(options, values=values), guard or self._guard
        return render(self._tokenizer, turns, jinja, tools=tools, options=options)

    def plain(self, text: str) -> str:
        """Return a text without guards."""
        return text.replace(self._guard, "") if self._guard else text

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text that was rendered. Raises InvalidRequest."""
        if self._marks is None:
            return encode(self._tokenizer, text, "messages", special=special)
        return self._marks.encode(text, self._guard, special=special)


def _tool_format(own: str | None, tokenizer: Any, wanted: ToolFormat | None) -> ToolFormat:
    """Return the form of calls of a template. Raises InvalidRequest if another one is wanted."""
    found = find_tool_format(own, tokenizer)
    if wanted is not None and found.name != wanted.name:
        raise InvalidRequest(
            f"chat_template: it has calls in the form {found.name}, and answers are read in the form {wanted.name}: "
            "leave the tools out, or serve it as --chat-template",
            param="chat_template",
        )
    return found


def _described(chat: _Chat, turns: list[dict[str, Any]], jinja: str | None, told: str) -> str:
    """Return the chat with `told` in its system message, or before the first user message if there can be none."""
    if not told:
        return chat.render(turns, jinja)
    try:
        text = chat.render(in_system_turn(turns, told), jinja)
    except InvalidRequest:
        text = ""
    return text if told in chat.plain(text) else chat.render(in_user_turn(turns, told), jinja)


def unite_ends(model: Any, tokenizer: Any, vocabulary: int) -> None:
    """Let an answer end at each id that the generation settings, the configuration or the tokenizer names as an end.

    Checkpoints name the end of a turn in one place and the end of a text in another. `vocabulary`: number of ids that
    the model takes; it never gives others.
    """
    config, settings = model.config, model.generation_config
    places = (settings, config, config.get_text_config(), tokenizer)
    named = [getattr(place, "eos_token_id", None) for place in places]
    ends = [end for one in named for end in (one if isinstance(one, list | tuple) else [one])]
    known = list(dict.fromkeys(int(end) for end in ends if end is not None and 0 <= end < vocabulary))
    settings.eos_token_id = known[0] if len(known) == 1 else known or None


def end_with_turns(model: Any, tokenizer: Any, template: ChatTemplate) -> ChatTemplate:
    """Add the template's stop texts that are tokens to the model's end tokens; return a template with the other texts.

    They must end answers as tokens: a special token leaves no text behind in which it could be found.
    `unite_ends` comes first.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [vocabulary[text] for text in template.stop if text in vocabulary]
    if ends:
        settings = model.generation_config
        known = settings.eos_token_id
        before = known if isinstance(known, list) else [] if known is None else [known]
        settings.eos_token_id = list(dict.fromkeys([*before, *ends]))
    return replace(template, stop=tuple(text for text in template.stop if text not in vocabulary))
