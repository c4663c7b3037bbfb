"""The formats in which models write calls of functions: a row for each, found by what the chat template says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, chosen
from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.parsers import HermesParser, JsonParser, LlamaParser, MistralParser


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

    @property
    def visible(self) -> tuple[str, ...]:
        """The tokens that the parser must see in the text of an answer, be they special or not."""
        return tuple(self.tokens)

    @property
    def single(self) -> bool:
        """Whether an answer has one call at most."""
        return self.form.between is None

    def parser(self, functions: Iterable[Function], *, parallel: bool = True) -> ToolParser:
        """A parser of one answer; with `parallel` false it gives the first call only."""
        return self.parse(functions, parallel=parallel)

    def grammar(self, functions: Sequence[Function], *, name: str | None = None, parallel: bool = True) -> str:
        """The grammar, in llguidance's Lark, of an answer that is calls and nothing else.

        With `name` it is one call of that function; without, one call of any, or more if `parallel`. The arguments
        are held to each function's `parameters`. Raises InvalidRequest for a name that no function has, and for
        parameters that are not an object's; what else llguidance refuses in a schema, it says when it reads it.
        """
        return self.form.lark(chosen(functions, name), self.tokens, several=parallel and name is None)


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
        form=CallForm(name='<tool_call>\n{"name": ', end="}\n</tool_call>", between="\n"),
        parse=HermesParser,
    ),
    # Mistral Small 3.2, Devstral, Magistral, Ministral 3.
    ToolFormat(
        name="mistral-args",
        contains=("tools", "[TOOL_CALLS]", "[ARGS]"),
        markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        form=CallForm(name="[TOOL_CALLS]", arguments="[ARGS]", end="", quoted=False, between=""),
        parse=MistralParser,
        short_ids=True,
    ),
    # Mistral 7B v0.3, Small 3.1, with SentencePiece's space; and Nemo without.
    ToolFormat(
        name="mistral",
        contains=("tools", "[TOOL_CALLS] ["),
        markers=("[TOOL_CALLS]",),
        form=CallForm(first="[TOOL_CALLS] [", between=", ", last="]"),
        parse=MistralParser,
        short_ids=True,
    ),
    ToolFormat(
        name="mistral-nemo",
        contains=("tools", "[TOOL_CALLS]"),
        markers=("[TOOL_CALLS]",),
        form=CallForm(first="[TOOL_CALLS][", between=", ", last="]"),
        parse=MistralParser,
        short_ids=True,
    ),
    # Llama 3.1 to 3.3; their templates refuse a turn with several calls.
    ToolFormat(
        name="llama",
        contains=("tools", "ipython", '"parameters": '),
        markers=("<|python_tag|>",),
        form=CallForm(arguments=', "parameters": '),
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
    return replace(row, tokens={marker: int(added[marker]) for marker in row.markers if marker in added})


def tool_template(tokenizer: Any) -> str | None:
    """The text of the tokenizer's chat template; of several the one for tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template or None
