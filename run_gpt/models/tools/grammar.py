"""Forms of calls in a format, as text and as a grammar that constrains a model to it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from run_gpt.errors import InvalidRequest
from run_gpt.models.json_schema import enforceable
from run_gpt.models.tools.function import Function

# Python's way of writing JSON, in which models have seen calls and schemas. White space must not be endless.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Options of llguidance for arguments."""

_TERMINALS = r"""GAP: /[ \t\r\n]{1,8}/
NUMBER: /:[0-9]{1,4}/
KEY: /[^<>\n]{1,64}/"""


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
    numbered: bool = False
    """True when a number follows each name, `:0` for the first call."""
    single_is_bare: bool = False
    """True when `first` and `last` are written only around several calls."""

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return `calls`, each a name and the JSON text of its arguments, as a model writes them."""
        texts = [
            f"{self.before(name, number)}{self.written(arguments)}{self.end}"
            for number, (name, arguments) in enumerate(calls)
        ]
        if self.single_is_bare and len(texts) == 1:
            return texts[0]
        between = "; " if self.between is None else self.between
        return f"{self.first}{between.join(texts)}{self.last}"

    def written(self, arguments: str) -> str:
        """Return the JSON text of arguments as a model writes it."""
        return arguments

    def before(self, name: str, number: int) -> str:
        """Return a call of the function `name` up to its arguments."""
        return f"{self.name}{self.named(name)}{f':{number}' if self.numbered else ''}{self.arguments}"

    def lark_before(self, name: str, tokens: Mapping[str, int], *, without: str = "") -> str:
        """Return the grammar of a call of the function `name` up to its arguments, without the text `without`."""
        begin = lark_text(f"{self.name}{self.named(name)}".removeprefix(without), tokens)
        number = "NUMBER" if self.numbered else ""
        return f"{begin} {number} {lark_text(self.arguments, tokens)}"

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
            return f"(GAP? call)* GAP? {last}"
        return f"({lark_text(self.between, tokens)} call)* {last}"

    def call_rules(self, functions: Sequence[Function], tokens: Mapping[str, int]) -> str:
        """Return the rules `call`, and `call_i` and `arguments_i` for function number i."""
        rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions))), _TERMINALS]
        for i, function in enumerate(functions):
            before, end = self.lark_before(function.name, tokens), lark_text(self.end, tokens)
            rules += [f"call_{i}: {before} arguments_{i} {end}", *self.argument_rules(i, function, tokens)]
        return "\n".join(rules) + "\n"

    def argument_rules(self, i: int, function: Function, tokens: Mapping[str, int]) -> list[str]:
        """Return the rules `arguments_i`, and `object_i`, which is the arguments as a JSON object."""
        schema = json.dumps({**enforceable(function.schema()), "x-guidance": SPACING})
        return [f"arguments_{i}: object_{i}", f"object_{i}: %json {schema}"]


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
