"""Formats in which models write function calls: one entry for each, found by the text of the chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from run_gpt.models.tools import free_grammar
from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, chosen
from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.parsers import HermesParser, JsonParser, LlamaParser, MistralParser
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
    short_ids: bool = False
    """True when the chat template refuses ids of calls that are not 9 letters and digits."""
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
    # Qwen 2.5 and 3, Hermes 2 Pro and 3. Qwen 3 Coder and GLM use the same markers around another syntax.
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
        short_ids=True,
    ),
    # Mistral 7B v0.3 and Small 3.1, with SentencePiece's space; Nemo, below, has no space.
    ToolFormat(
        name="mistral",
        contains=("tools", "[TOOL_CALLS] ["),
        markers=("[TOOL_CALLS]",),
        form=CallForm(marker="[TOOL_CALLS]", first="[TOOL_CALLS] [", between=", ", last="]"),
        parse=MistralParser,
        short_ids=True,
    ),
    ToolFormat(
        name="mistral-nemo",
        contains=("tools", "[TOOL_CALLS]"),
        markers=("[TOOL_CALLS]",),
        form=CallForm(marker="[TOOL_CALLS]", first="[TOOL_CALLS][", between=", ", last="]"),
        parse=MistralParser,
        short_ids=True,
    ),
    # Llama 3.1 to 3.3; their templates refuse a turn with several calls.
    ToolFormat(
        name="llama",
        contains=("tools", "ipython", '"parameters": '),
        markers=("<|python_tag|>",),
        form=CallForm(tag="<|python_tag|>", arguments=', "parameters": '),
        parse=LlamaParser,
    ),
)


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
    return replace(row, tokens=tokens, others=tuple(sorted(others)))


def tool_template(tokenizer: Any) -> str | None:
    """Return the text of the tokenizer's chat template; if there are several, the one for tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template or None
