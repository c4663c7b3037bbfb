"""Prints the README's tables of parameters and errors, made from the code, and writes them there with `--write`.

A table stands between the lines `<!-- NAME: made by scripts/readme_tables.py -->` and `<!-- end -->`; a test compares.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from run_gpt import errors
from run_gpt.api.schema import ChatRequest, GenerateRequest, Parameters

README = Path(__file__).parents[1] / "README.md"


def parameters_table() -> str:
    """Every parameter of a request: its name, the values that it takes, and what it does."""
    lines = ["| parameter | values | meaning |", "|---|---|---|"]
    for model, note in ((GenerateRequest, "`generate`: "), (ChatRequest, "`chat`: "), (Parameters, "")):
        inherited = () if model is Parameters else Parameters.model_fields
        properties = model.model_json_schema()["properties"]
        for name, info in model.model_fields.items():
            if name not in inherited:
                lines.append(f"| `{name}` | {_values(properties[name])} | {note}{info.description} |")
    return "\n".join(lines)


def _values(schema: dict[str, Any]) -> str:
    """The type and the limits in a field's JSON schema, as a phrase."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    return " or ".join(_phrase(choice) for choice in choices)


def _phrase(schema: dict[str, Any]) -> str:
    kinds = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false"}
    kinds |= {"array": "list", "object": "object"}
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in schema and schema[key] != 2**31 - 1
    ]
    return " ".join([kinds[schema["type"]], ", ".join(limits)]).strip()


def errors_table() -> str:
    """Every error that answers a request: its Python class, its code, and its status on both doors."""
    lines = ["| error in Python | `code` | HTTP | gRPC | when |", "|---|---|---|---|---|"]
    for cls in sorted(_subclasses(errors.RequestError), key=lambda cls: cls.http_status):
        when = (cls.__doc__ or "").replace("; `param` names it.", ".")
        lines.append(f"| `{cls.__name__}` | `{cls.code}` | {cls.http_status} | {cls.grpc_code} | {when} |")
    return "\n".join(lines)


def _subclasses(cls: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    """The subclasses in `run_gpt.errors`; a room may have finer ones of its own, which look the same from outside."""
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _subclasses(child)


TABLES = {"parameters": parameters_table, "errors": errors_table}


def with_tables(text: str) -> str:
    """The README's text with its tables made anew."""
    for name, table in TABLES.items():
        begin = f"<!-- {name}: made by scripts/readme_tables.py -->"
        pattern = re.compile(rf"{re.escape(begin)}\n.*?<!-- end -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no table {begin!r}")
        made = f"{begin}\n{table()}\n<!-- end -->"
        text = pattern.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_tables(README.read_text()))
    else:
        print(*(table() for table in TABLES.values()), sep="\n\n")
