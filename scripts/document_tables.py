"""Helpers of the scripts that make tables of documents: values of a JSON schema as text, tables between marks.

A table stands between the lines `<!-- NAME: made by MAKER -->` and `<!-- end -->`; the maker is a path, such as
scripts/readme_tables.py.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INT32_MAX = 2**31 - 1  # a limit of the wire that users need not know
Tables = Mapping[str, Callable[[], str]]


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def table(head: tuple[str, ...], rows: list[str]) -> str:
    """Return a table of lines that `row` made."""
    return "\n".join([row(*head), f"|{'---|' * len(head)}", *rows])


def values(schema: dict[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the types and limits in a field's JSON schema as a phrase. `definitions`: targets of its references."""
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        phrases = [values(choice, definitions) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(phrases))
    if "$ref" in schema:
        return values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema or "enum" in schema:
        return ", ".join(_literal(value) for value in schema.get("enum") or [schema["const"]])
    if schema["type"] == "array":
        return f"list of {_several(schema.get('maxItems'), schema['items'], definitions)}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_several(schema.get('maxProperties'), schema['additionalProperties'], definitions)}"
    kinds = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false", "object": "object"}
    return " ".join([kinds[schema["type"]], ", ".join(_limits(schema))]).strip()


def _several(most: int | None, item: dict[str, Any], definitions: Mapping[str, Any]) -> str:
    phrase = values(item, definitions)
    for one, many in (("integer", "token ids"), ("number", "numbers"), ("text", "texts"), ("object", "objects")):
        phrase = re.sub(rf"^{one}\b", many, phrase)
    phrase = phrase.partition(" ≥ 0")[0].replace("list of", "lists of", 1)
    return phrase if most is None else f"up to {most} {phrase}"


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"`{value}`"


def _limits(schema: dict[str, Any]) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    return [f"{sign} {schema[key]}" for key, sign in signs.items() if schema.get(key, INT32_MAX) != INT32_MAX]


def with_tables(document: Path, maker: str, tables: Tables) -> str:
    """Return the document's text with its tables made anew. Raises SystemExit if it has no place for one."""
    text = document.read_text()
    for name, make in tables.items():
        begin = f"<!-- {name}: made by {maker} -->"
        pattern = re.compile(rf"{re.escape(begin)}\n.*?<!-- end -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{document.name} has no line {begin!r}")
        made = f"{begin}\n{make()}\n<!-- end -->"
        text = pattern.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


def main(document: Path, maker: str, tables: Tables) -> None:
    """Print the tables, or write them into the document with `--write`."""
    if "--write" in sys.argv:
        document.write_text(with_tables(document, maker, tables))
    else:
        print(*(make() for make in tables.values()), sep="\n\n")
