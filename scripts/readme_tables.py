"""Print the README's tables of parameters and errors, made from the code; `--write` writes them there.

A test compares them.
"""

from collections.abc import Iterator
from pathlib import Path

from document_tables import main, row, table, values, with_tables

from run_gpt import errors
from run_gpt.api.schema import ChatRequest, GenerateRequest, Parameters

README = Path(__file__).parents[1] / "README.md"


def parameters_table() -> str:
    """Return the table of every parameter of a request: its name, its values, and its meaning."""
    rows = []
    for model, note in ((GenerateRequest, "`generate`: "), (ChatRequest, "`chat`: "), (Parameters, "")):
        common = Parameters.model_fields if model is not Parameters else {}
        schema = model.model_json_schema()
        for name, info in sorted(model.model_fields.items(), key=lambda field: field[0] in common):
            if name not in common or info.description != common[name].description:
                phrase = values(schema["properties"][name], schema.get("$defs", {}))
                rows.append(row(f"`{name}`", phrase, f"{note}{info.description}"))
    return table(("parameter", "values", "meaning"), rows)


def errors_table() -> str:
    """Return the table of every error of a request: its Python class, its code, and its status on both ports."""
    rows = []
    for cls in sorted(_subclasses(errors.RequestError), key=lambda cls: cls.http_status):
        when = (cls.__doc__ or "").replace("; `param` names it.", ".")
        rows.append(row(f"`{cls.__name__}`", f"`{cls.code}`", str(cls.http_status), cls.grpc_code, when))
    return table(("error in Python", "`code`", "HTTP", "gRPC", "when"), rows)


def _subclasses(cls: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    """Yield the subclasses in `run_gpt.errors`; other modules may have finer ones, which clients see as these."""
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _subclasses(child)


TABLES = {"parameters": parameters_table, "errors": errors_table}


def made() -> str:
    """Return the README's text with its tables made anew."""
    return with_tables(README, "scripts/readme_tables.py", TABLES)


if __name__ == "__main__":
    main(README, "scripts/readme_tables.py", TABLES)
