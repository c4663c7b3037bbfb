"""Forms of calls in a format, as text and as a grammar that constrains a model to it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from run_gpt.errors import InvalidRequest
from run_gpt.models.json_schema import enforceable
from run_gpt.models.tools.function import Function

# Python's way of writing JSON, in which models have seen calls and schemas. White space must not be endless.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_GAP = r"GAP: /[ \t\r\n]{1,8}/"


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """Texts around the names and the arguments of an answer's calls."""

    marker: str = ""
    """Text that begins calls anywhere in an answer; empty: calls begin at the answer's beginning or not at all."""
    tag: str = ""
    """Optional text before calls in a format without a marker."""
    name: str = '{"name": '
    arguments: str = ', "arguments": '
    end: str = "}"
    quoted: bool = True
    """True when the name is a JSON string."""
    first: str = ""
    """Text before the first call."""
    between: str | None = None
    """Text between two calls; None: an answer has one call."""
    last: str = ""
    """Text after the last call."""
    single_is_bare: bool = False
    """True when `first` and `last` are written only around several calls."""

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return `calls`, each a name and the JSON text of its arguments, as a model writes them."""
        texts = [f"{self.before(name)}{arguments}{self.end}" for name, arguments in calls]
        if self.single_is_bare and len(texts) == 1:
            return texts[0]
        between = "; " if self.between is None else self.between
        return f"{self.first}{between.join(texts)}{self.last}"

    def before(self, name: str) -> str:
        """Return a call of the function `name` up to its arguments."""
        return f"{self.name}{self.named(name)}{self.arguments}"

    def named(self, name: str) -> str:
        """Return a function's name as it is written in a call."""
        return json.dumps(name, ensure_ascii=False) if self.quoted else name

    def lark(self, functions: Sequence[Function], tokens: Mapping[str, int], *, several: bool) -> str:
        """Return llguidance's Lark grammar of one call of one of `functions`, or of one or more if `several`.

        `tokens` are the ids of markers that are one token: these never match a grammar's texts.
        """
        listed = f"{lark_text(self.first, tokens)} call {self.rest(tokens, several=several)}"
        start = ("call" + (f" | {listed}" if several else "")) if self.single_is_bare else listed
        return f"start: {start}\n{self.call_rules(functions, tokens)}"

    def rest(self, tokens: Mapping[str, int], *, several: bool) -> str:
        """Return the grammar of the part after the first call.

        Between calls that only white space separates, it commits to no further call: the answer may end there.
        """
        last = lark_text(self.last, tokens)
        if not several or self.between is None:
            return last
        if not self.between.strip():
            return "(GAP? call)* GAP?"
        return f"({lark_text(self.between, tokens)} call)* {last}"

    def call_rules(self, functions: Sequence[Function], tokens: Mapping[str, int]) -> str:
        """Return the rules `call`, and `call_i` and `arguments_i` for function number i."""
        rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions))), _GAP]
        for i, function in enumerate(functions):
            schema = json.dumps({**enforceable(function.schema()), "x-guidance": _SPACING})
            before, end = lark_text(self.before(function.name), tokens), lark_text(self.end, tokens)
            rules += [f"call_{i}: {before} arguments_{i} {end}", f"arguments_{i}: %json {schema}"]
        return "\n".join(rules) + "\n"


def chosen(functions: Sequence[Function], name: str | None) -> list[Function]:
    """Return the functions that may be called. Raises InvalidRequest if there is none, or none called `name`."""
    found = [function for function in functions if name in (None, function.name)]
    if not found:
        wanted = "a call is required" if name is None else f"it names {name!r}"
        known = ", ".join(repr(function.name) for function in functions) or "none"
        raise InvalidRequest(f"tool_choice: {wanted}; the functions in tools: {known}", param="tool_choice")
    return found


def lark_text(text: str, tokens: Mapping[str, int]) -> str:
    """Return `text` as a sequence of Lark's strings and token ids."""
    if not tokens:
        return json.dumps(text) if text else ""
    parts = re.split(f"({'|'.join(re.escape(marker) for marker in tokens)})", text)
    return " ".join(f"<[{tokens[part]}]>" if part in tokens else json.dumps(part) for part in parts if part)
