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
        texts = [f"{self.name}{self._named(name)}{self.arguments}{arguments}{self.end}" for name, arguments in calls]
        if self.single_is_bare and len(texts) == 1:
            return texts[0]
        between = "; " if self.between is None else self.between
        return f"{self.first}{between.join(texts)}{self.last}"

    def lark(self, functions: Sequence[Function], tokens: Mapping[str, int], *, several: bool) -> str:
        """llguidance's Lark grammar of a call of one of `functions`, or of one or more.

        `tokens` are the ids of markers that are one token: a grammar's texts never stand for those.
        """
        first, last, between = (_lark(text or "", tokens) for text in (self.first, self.last, self.between))
        start = f"{first} call {last}"
        if several and self.between is not None:
            start = f"{first} call ({between} call)* {last}"
        if self.single_is_bare:
            start = f"call | {start}" if several else "call"
        rules = [f"start: {start}", "call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
        for i, function in enumerate(functions):
            before = _lark(f"{self.name}{self._named(function.name)}{self.arguments}", tokens)
            schema = json.dumps({**function.schema(), "x-guidance": _SPACING})
            rules += [f"call_{i}: {before} arguments_{i} {_lark(self.end, tokens)}", f"arguments_{i}: %json {schema}"]
        return "\n".join(rules) + "\n"

    def _named(self, name: str) -> str:
        return json.dumps(name, ensure_ascii=False) if self.quoted else name


def chosen(functions: Sequence[Function], name: str | None) -> list[Function]:
    """The functions that may be called. Raises InvalidRequest if there is none, or none called `name`."""
    found = [function for function in functions if name in (None, function.name)]
    if not found:
        wanted = "a call is required" if name is None else f"it names {name!r}"
        known = ", ".join(repr(function.name) for function in functions) or "none"
        raise InvalidRequest(f"tool_choice: {wanted}; the functions in tools: {known}", param="tool_choice")
    return found


def _lark(text: str, tokens: Mapping[str, int]) -> str:
    """`text` as a sequence of Lark's strings and token ids."""
    if not tokens:
        return json.dumps(text) if text else ""
    parts = re.split(f"({'|'.join(re.escape(marker) for marker in tokens)})", text)
    return " ".join(f"<[{tokens[part]}]>" if part in tokens else json.dumps(part) for part in parts if part)
