"""Formats in which models write function calls: one entry for each, found by the text of the chat template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from run_gpt.models.tools import free_grammar
from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, chosen
from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.parsers import (
    DEEPSEEK,
    DeepSeekParser,
    HarmonyParser,
    HermesParser,
    JsonParser,
    KimiParser,
    LlamaParser,
    MistralParser,
)
from run_gpt.models.tools.tagged import GlmParser, QwenCoderParser
from run_gpt.models.tools.tagged_form import TaggedForm
from run_gpt.models.tools.tokens import wordless_ids


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One format of calls, with all that is needed to recognise, write and read it."""

    name: str
    form: CallForm
    parse: type[ToolParser]
    contains: tuple[str, ...] = ()
    """Texts that the chat template of the format's models must all contain."""
    lacks: tuple[str, ...] = ()
    """Texts that the chat template must not contain."""
    markers: tuple[str, ...] = ()
    """Texts that are single tokens in most of the format's models."""
    native: bool = True
    """True when the chat template takes tools, calls and results; otherwise we describe them in plain turns."""
    ids: Literal["any", "short", "numbered"] = "any"
    """Ids of calls that the chat template wants: `short` has 9 letters and digits, `numbered` is functions.NAME:0."""
    text_arguments: bool = False
    """True when the chat template takes arguments as JSON text."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Ids of the markers that are tokens of this tokenizer."""
    others: tuple[int, ...] = ()
    """Ids of the tokens that never match a grammar's texts, except the one that begins calls."""

    @property
    def visible(self) -> tuple[str, ...]:
        """Tokens that the parser must see in the text of an answer, special or not."""
        return tuple(self.tokens)

    @property
    def single(self) -> bool:
        """True when an answer has at most one call."""
        return self.form.between is None

    def parser(self, functions: Sequence[Function], *, parallel: bool = True, once: bool = False) -> ToolParser:
        """Return a parser of one answer; if `parallel` is false, it returns only the first call.

        In that case, and if a function is strict, the answer must follow a grammar, and the parser finds no calls in
        what is text by that grammar. If `once`, a call that is equal to an earlier one is dropped.
        """
        held = not parallel or any(function.strict for function in functions)
        opening = free_grammar.opening(self.form, [function.name for function in functions]) if held else None
        return self.parse(functions, parallel=parallel, opening=opening, once=once)

    def grammar(self, functions: Sequence[Function], *, name: str | None = None, parallel: bool = True) -> str:
        """Return the grammar, in llguidance's Lark, of an answer that consists only of calls.

        With `name` it is one call of that function; otherwise it is one call of any function, or more if `parallel`.
        The arguments must follow each function's `parameters`. Raises InvalidRequest for an unknown name, and for
        parameters that are not the schema of an object. Other faults of a schema are reported only when llguidance
        compiles the grammar.
        """
        return self.form.lark(chosen(functions, name), self.tokens, several=parallel and name is None)

    def optional_grammar(self, functions: Sequence[Function], *, parallel: bool = True, text: bool = True) -> str:
        """Return the grammar of an answer that may be calls; functions that are not strict take any object.

        With `text` the answer may also be any text (see free_grammar.py); otherwise it consists only of calls.
        """
        held = [function if function.strict else replace(function, parameters=None) for function in functions]
        if not text:
            return self.form.lark(held, self.tokens, several=parallel)
        return free_grammar.text_or_calls(self.form, held, self.tokens, self.others, several=parallel)

    def text_grammar(self, functions: Sequence[Function]) -> str:
        """Return the grammar of an answer in which no call begins."""
        return free_grammar.no_call(self.form, functions)


JSON = ToolFormat(
    name="json",
    form=CallForm(first="[", between=", ", last="]", single_is_bare=True),
    parse=JsonParser,
    native=False,
)

FORMATS: tuple[ToolFormat, ...] = (
    # Qwen 2.5 and 3, Hermes 2 Pro and 3.
    ToolFormat(
        name="hermes",
        contains=("tools", "<tool_call>", "arguments"),
        lacks=("<function=", "<arg_key>"),
        markers=("<tool_call>", "</tool_call>"),
        form=CallForm(marker="<tool_call>", name='<tool_call>\n{"name": ', end="}\n</tool_call>", between="\n"),
        parse=HermesParser,
    ),
    # Mistral Small 3.2, Devstral, Magistral, Ministral 3.
    ToolFormat(
        name="mistral-args",
        contains=("tools", "[TOOL_CALLS]", "[ARGS]"),
        markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        form=CallForm(marker="[TOOL_CALLS]", name="[TOOL_CALLS]", arguments="[ARGS]", end="", quoted=False, between=""),
        parse=MistralParser,
        ids="short",
    ),
    # Mistral 7B v0.3 and Small 3.1, with SentencePiece's space; Nemo, below, has no space.
    ToolFormat(
        name="mistral",
        contains=("tools", "[TOOL_CALLS] ["),
        markers=("[TOOL_CALLS]",),
        form=CallForm(marker="[TOOL_CALLS]", first="[TOOL_CALLS] [", between=", ", last="]"),
        parse=MistralParser,
        ids="short",
    ),
    ToolFormat(
        name="mistral-nemo",
        contains=("tools", "[TOOL_CALLS]"),
        markers=("[TOOL_CALLS]",),
        form=CallForm(marker="[TOOL_CALLS]", first="[TOOL_CALLS][", between=", ", last="]"),
        parse=MistralParser,
        ids="short",
    ),
    # Llama 3.1 to 3.3; their templates refuse a turn with several calls.
    ToolFormat(
        name="llama",
        contains=("tools", "ipython", '"parameters": '),
        markers=("<|python_tag|>",),
        form=CallForm(tag="<|python_tag|>", arguments=', "parameters": '),
        parse=LlamaParser,
    ),
    # Qwen 3 Coder, Nemotron 3: the same markers as Hermes around another syntax.
    ToolFormat(
        name="qwen-coder",
        contains=("tools", "<tool_call>", "<function=", "<parameter="),
        markers=("<tool_call>", "</tool_call>"),
        form=TaggedForm(
            marker="<tool_call>",
            name="<tool_call>\n<function=",
            arguments=">\n",
            end="</function>\n</tool_call>",
            between="\n",
            quoted=False,
            key_begin="<parameter=",
            key_end=">\n",
            value_end="\n</parameter>\n",
        ),
        parse=QwenCoderParser,
    ),
    # GLM 4.5 and later.
    ToolFormat(
        name="glm",
        contains=("tools", "<tool_call>", "<arg_key>", "<arg_value>"),
        markers=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        form=TaggedForm(
            marker="<tool_call>",
            name="<tool_call>",
            arguments="\n",
            end="</tool_call>",
            between="\n",
            quoted=False,
            key_begin="<arg_key>",
            key_end="</arg_key>\n<arg_value>",
            value_end="</arg_value>\n",
        ),
        parse=GlmParser,
    ),
    # DeepSeek V3 and R1, with a template that has tools.
    ToolFormat(
        name="deepseek",
        contains=("tools", DEEPSEEK[0], "```json"),
        markers=DEEPSEEK,
        form=CallForm(
            marker=DEEPSEEK[0],
            first=DEEPSEEK[0],
            name=f"{DEEPSEEK[1]}function{DEEPSEEK[2]}",
            arguments="\n```json\n",
            end=f"\n```{DEEPSEEK[3]}",
            between="\n",
            last=DEEPSEEK[4],
            quoted=False,
        ),
        parse=DeepSeekParser,
        text_arguments=True,
    ),
    ToolFormat(
        name="deepseek-3.1",
        contains=("tools", DEEPSEEK[0]),
        markers=DEEPSEEK,
        form=CallForm(
            marker=DEEPSEEK[0],
            first=DEEPSEEK[0],
            name=DEEPSEEK[1],
            arguments=DEEPSEEK[2],
            end=DEEPSEEK[3],
            between="",
            last=DEEPSEEK[4],
            quoted=False,
        ),
        parse=DeepSeekParser,
        text_arguments=True,
    ),
    ToolFormat(
        name="kimi",
        contains=("tools", "<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
        markers=(
            "<|tool_calls_section_begin|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        ),
        form=CallForm(
            marker="<|tool_calls_section_begin|>",
            first="<|tool_calls_section_begin|>",
            name="<|tool_call_begin|>functions.",
            numbered=True,
            arguments="<|tool_call_argument_begin|>",
            end="<|tool_call_end|>",
            between="",
            last="<|tool_calls_section_end|>",
            quoted=False,
        ),
        parse=KimiParser,
        ids="numbered",
    ),
    # gpt-oss, in OpenAI's harmony. The token <|call|> ends an answer.
    ToolFormat(
        name="harmony",
        contains=("tools", "<|channel|>", "<|message|>", "functions"),
        markers=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"),
        form=CallForm(
            marker="<|channel|>commentary to=functions.",
            name="<|channel|>commentary to=functions.",
            arguments=" <|constrain|>json<|message|>",
            end="",
            quoted=False,
        ),
        parse=HarmonyParser,
    ),
)


_OBJECT_ARGUMENTS = re.compile(r"arguments['\"]?\]?\s*(?:\|\s*tojson|is )")
"""Places of a template that takes arguments as objects."""


def find_tool_format(chat_template: str | None, tokenizer: Any) -> ToolFormat:
    """Return the format of a model by its chat template: JSON if that has no tools, or has them in an unknown form."""
    text = chat_template or ""
    fitting = (
        row
        for row in FORMATS
        if all(part in text for part in row.contains) and not any(part in text for part in row.lacks)
    )
    row = next(fitting, JSON)
    added = tokenizer.get_added_vocab()
    tokens = {marker: int(added[marker]) for marker in row.markers if marker in added}
    others = wordless_ids(tokenizer) - {tokens.get(row.form.marker)}
    by_template = row.text_arguments and not _OBJECT_ARGUMENTS.search(text)
    return replace(row, tokens=tokens, others=tuple(sorted(others)), text_arguments=by_template)


def tool_template(tokenizer: Any) -> str | None:
    """Return the text of the tokenizer's chat template; if there are several, the one for tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template or None
