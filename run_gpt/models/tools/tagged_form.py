"""Form and grammar of calls whose arguments stand one by one between tags, as text."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.json_schema import enforceable
from run_gpt.models.tools.function import Function, object_of
from run_gpt.models.tools.grammar import SPACING, CallForm, lark_text
from run_gpt.models.tools.typed import is_text

_KNOWN = ("type", "properties", "required", "additionalProperties", "$defs", "definitions")
"""Keywords of a schema of arguments that the tags can keep."""
_NOTES = ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated")


@dataclass(frozen=True, kw_only=True)
class TaggedForm(CallForm):
    """Texts around names and arguments of calls with a tag for each argument."""

    key_begin: str
    key_end: str
    """Text between an argument's name and its value."""
    value_end: str
    """Text after a value."""

    def written(self, arguments: str) -> str:
        """See CallForm."""
        if (values := object_of(arguments)) is None:
            return arguments
        return "".join(
            f"{self.key_begin}{key}{self.key_end}{_text(value)}{self.value_end}" for key, value in values.items()
        )

    def argument_rules(self, i: int, function: Function, tokens: Mapping[str, int]) -> list[str]:
        """See CallForm. Arguments come in the schema's order, the required ones always."""
        schema = enforceable(function.schema())
        _check(function, schema)
        required, parts, rules = schema.get("required", ()), [], []
        for j, (name, inner) in enumerate(schema.get("properties", {}).items()):
            rule = f"argument_{i}_{j}"
            begin = lark_text(f"{self.key_begin}{name}{self.key_end}", tokens)
            rules += self._argument(rule, begin, _value(function, name, inner, schema), tokens)
            parts.append(rule if name in required else f"{rule}?")
        if schema.get("additionalProperties", True) is not False:
            begin = f"{lark_text(self.key_begin, tokens)} KEY {lark_text(self.key_end, tokens)}"
            rules += self._argument(f"further_{i}", begin, "/(?s:.*)/", tokens)
            parts.append(f"further_{i}*")
        whole = json.dumps({**schema, "x-guidance": SPACING})
        return [f"arguments_{i}: {' '.join(parts)}", f"object_{i}: %json {whole}", *rules]

    def _argument(self, rule: str, begin: str, value: str, tokens: Mapping[str, int]) -> list[str]:
        """Return the rules of an argument; a `value` that is a pattern (`/.../`) ends with the text after it."""
        end = lark_text(self.value_end, tokens)
        if not value.startswith("/"):
            return [f"{rule}: {begin} {value} {end}"]
        if any(token in self.value_end for token in tokens):  # a token is no part of a text
            return [f"{rule}: {begin} {rule}_text? {end}", f"{rule}_text: {value}"]
        after = re.escape(self.value_end).replace("/", r"\/").replace("\\\n", r"\n").replace("\n", r"\n")
        return [f"{rule}: {begin} {rule}_text", f"{rule}_text[lazy]: {value[:-1]}{after}/"]


def _value(function: Function, name: str, schema: Any, root: Mapping[str, Any]) -> str:
    """Return the grammar of a value: JSON, one of several texts, or the pattern of a text."""
    if not is_text(function, name):
        known = {key: root[key] for key in ("$defs", "definitions") if key in root}
        inner = schema if isinstance(schema, dict) else {}
        return f"%json {json.dumps({**inner, **known, 'x-guidance': SPACING})}"
    texts = [schema["const"]] if "const" in schema else schema.get("enum")
    if texts is not None:
        return f"({' | '.join(json.dumps(text) for text in texts)})"
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return rf"/(?s:.{{{least},{most}}})/"


def _check(function: Function, schema: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a schema of arguments that tags cannot keep."""
    others = [key for key in schema if key not in (*_KNOWN, *_NOTES)]
    if others or not isinstance(schema.get("additionalProperties", True), bool):
        name = others[0] if others else "additionalProperties"
        raise InvalidRequest(
            f"tools: parameters of {function.name!r} have {name}, which cannot be enforced in this model's form of "
            "calls: give the arguments in `properties` only",
            param="tools",
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
