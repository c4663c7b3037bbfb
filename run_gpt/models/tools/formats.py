"""The formats in which models write calls of functions: a row for each, found by what the chat template says."""

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
    """One format: how it is recognised, written and read."""

    name: str
    form: CallForm
    parse: type[ToolParser]
    contains: tuple[str, ...] = ()
    """Texts that are all in the chat template of its models."""
    lacks: tuple[str, ...] = ()
    """Texts of which none is in it."""
    markers: tuple[str, ...] = ()
    """Texts that are tokens of their own in most of its models."""
    native: bool = True
    """Whether the chat template takes tools, calls and results; otherwise we describe them in plain turns."""
    short_ids: bool = False
    """Whether the chat template refuses ids of calls that are not 9 letters and digits."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """The ids of those markers that are tokens of this tokenizer."""
    others: tuple[int, ...] = ()
    """The ids of the tokens that a grammar's texts never stand for, but for the one that begins calls."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The tokens that the parser must see in the text of an answer, be they special or not."""
        return tuple(self.tokens)

    @property
    def single(self) -> bool:
        """Whether an answer has one call at most."""
        return self.form.between is None

    def parser(self, functions: Sequence[Function], *, parallel: bool = True) -> ToolParser:
        """A parser of one answer; with `parallel` false it gives the first call only.

        Then, and if a function is strict, the answer must be held to a grammar: what that takes for text is no call.
        """
        held = not self.form.marker and (not parallel or any(function.strict for function in functions))
        opening = free_grammar.opening(self.form, [function.name for function in functions]) if held else None
        return self.parse(functions, parallel=parallel, opening=opening)

    def grammar(self, functions: Sequence[Function], *, name: str | None = None, parallel: bool = True) -> str:
        """The grammar, in llguidance's Lark, of an answer that is calls and nothing else.

        With `name` it is one call of that function; without, one call of any, or more if `parallel`. The arguments
        are held to each function's `parameters`. Raises InvalidRequest for a name that no function has, and for
        parameters that are not an object's; what else llguidance refuses in a schema, it says when it reads it.
        """
        return self.form.lark(chosen(functions, name), self.tokens, several=parallel and name is None)

    def optional_grammar(self, functions: Sequence[Function], *, parallel: bool = True, text: bool = True) -> str:
        """The same of an answer that may be calls, where those of functions that are not strict have any object.

        With `text` it may as well be any text (see free_grammar.py), else it is calls and nothing else.
        """
        held = [function if function.strict else replace(function, parameters=None) for function in functions]
        if not text:
            return self.form.lark(held, self.tokens, several=parallel)
        return free_grammar.text_or_calls(self.form, held, self.tokens, self.others, several=parallel)

    def text_grammar(self, functions: Sequence[Function]) -> str:
        """The same of an answer in which no call begins."""
        return free_grammar.no_call(self.form, functions)


JSON = ToolFormat(
    name="json",
    form=CallForm(first="[", between=", ", last="]", single_is_bare=True),
    parse=JsonParser,
    native=False,
)

FORMATS: tuple[ToolFormat, ...] = (
    # Qwen 2.5 and 3, Hermes 2 Pro and 3. Qwen 3 Coder and GLM write other things between the same markers.
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
    # Mistral 7B v0.3, Small 3.1, with SentencePiece's space; and Nemo without.
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
    """The format of a model, by its chat template: JSON if that knows no tools, or knows them in a form not here."""
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
    """The text of the tokenizer's chat template; of several the one for tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template or None
