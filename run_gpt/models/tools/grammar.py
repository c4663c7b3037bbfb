"""How calls are written in a format, as a text and as a grammar that holds a model to it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from run_gpt.errors import InvalidRequest
from run_gpt.models.tools.function import Function

# As Python writes JSON, which is how models have seen calls and schemas; and no white space without an end.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """The texts between which the names and the arguments of an answer's calls stand."""

    marker: str = ""
    """What begins calls anywhere in an answer; empty: an answer is calls from its beginning, or it has none."""
    tag: str = ""
    """What may stand before calls that no marker begins."""
    name: str = '{"name": '
    arguments: str = ', "arguments": '
    end: str = "}"
    quoted: bool = True
    """Whether the name is a JSON string."""
    first: str = ""
    """Before the first of the calls."""
    between: str | None = None
    """Between two calls; None: an answer has one call."""
    last: str = ""
    """After the last of them."""
    single_is_bare: bool = False
    """Whether `first` and `last` stand around several calls only."""

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """`calls`, each a name and the JSON text of its arguments, as a model writes them."""
        texts = [f"{self.before(name)}{arguments}{self.end}" for name, arguments in calls]
        if self.single_is_bare and len(texts) == 1:
            return texts[0]
        between = "; " if self.between is None else self.between
        return f"{self.first}{between.join(texts)}{self.last}"

    def before(self, name: str) -> str:
        """A call of the function `name` up to its arguments."""
        return f"{self.name}{self.named(name)}{self.arguments}"

    def named(self, name: str) -> str:
        """A function's name as a call has it."""
        return json.dumps(name, ensure_ascii=False) if self.quoted else name

    def lark(self, functions: Sequence[Function], tokens: Mapping[str, int], *, several: bool) -> str:
        """llguidance's Lark grammar of a call of one of `functions`, or of one or more.

        `tokens` are the ids of markers that are one token: a grammar's texts never stand for those.
        """
        listed = f"{lark_text(self.first, tokens)} call {self.rest(tokens, several=several)}"
        start = ("call" + (f" | {listed}" if several else "")) if self.single_is_bare else listed
        return f"start: {start}\n{self.call_rules(functions, tokens)}"

    def rest(self, tokens: Mapping[str, int], *, several: bool) -> str:
        """What may come after the first call."""
        last = lark_text(self.last, tokens)
        return f"({lark_text(self.between, tokens)} call)* {last}" if several and self.between is not None else last

    def call_rules(self, functions: Sequence[Function], tokens: Mapping[str, int]) -> str:
        """The rules `call`, and for the function with the number i `call_i`, `arguments_i`."""
        rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
        for i, function in enumerate(functions):
            schema = json.dumps({**function.schema(), "x-guidance": _SPACING})
            before, end = lark_text(self.before(function.name), tokens), lark_text(self.end, tokens)
            rules += [f"call_{i}: {before} arguments_{i} {end}", f"arguments_{i}: %json {schema}"]
        return "\n".join(rules) + "\n"


def chosen(functions: Sequence[Function], name: str | None) -> list[Function]:
    """The functions that may be called. Raises InvalidRequest if there is none, or none called `name`."""
    found = [function for function in functions if name in (None, function.name)]
    if not found:
        wanted = "a call is required" if name is None else f"it names {name!r}"
        known = ", ".join(repr(function.name) for function in functions) or "none"
        raise InvalidRequest(f"tool_choice: {wanted}; the functions in tools: {known}", param="tool_choice")
    return found


def lark_text(text: str, tokens: Mapping[str, int]) -> str:
    """`text` as a sequence of Lark's strings and token ids."""
    if not tokens:
        return json.dumps(text) if text else ""
    parts = re.split(f"({'|'.join(re.escape(marker) for marker in tokens)})", text)
    return " ".join(f"<[{tokens[part]}]>" if part in tokens else json.dumps(part) for part in parts if part)
