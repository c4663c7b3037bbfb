"""Print the tables of docs/ollama.md, made from the schemas; `--write` writes them there. A test compares them."""

from pathlib import Path
from typing import Any

from document_tables import main, row, table, values, with_tables
from openai_table import entries, sentence

from run_gpt.api.ollama import requests

DOCUMENT = Path(__file__).parents[1] / "docs" / "ollama.md"
MAKER = "scripts/ollama_table.py"


def fields_table(kind: Any) -> str:
    """Return every field of a request or of its options, and those that are hints or refused."""
    schema = kind.model_json_schema()
    lines = [
        row(
            f"`{name}`",
            "supported",
            values(schema["properties"][name], schema.get("$defs", {})),
            sentence(info.description or ""),
        )
        for name, info in kind.model_fields.items()
    ]
    lines += [*entries("hint", kind.FIELDS.hints), *entries("refused", kind.FIELDS.refused)]
    return table(("field", "here", "values", "meaning"), lines)


TABLES = {
    "chat": lambda: fields_table(requests.OllamaChatRequest),
    "generate": lambda: fields_table(requests.OllamaGenerateRequest),
    "embed": lambda: fields_table(requests.OllamaEmbedRequest),
    "options": lambda: fields_table(requests.Options),
}


def made() -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(DOCUMENT, MAKER, TABLES)


if __name__ == "__main__":
    main(DOCUMENT, MAKER, TABLES)
