"""Print the tables of docs/messages.md, made from the schemas; `--write` writes them there. A test compares them."""

from pathlib import Path
from typing import Any

from document_tables import main, row, table, values, with_tables
from openai_table import entries, sentence

from run_gpt.api.anthropic import blocks, fields, messages

DOCUMENT = Path(__file__).parents[1] / "docs" / "messages.md"
MAKER = "scripts/messages_table.py"
_OURS = "Beyond Anthropic's: "


def request_table() -> str:
    """Return every field of a request: those of Anthropic's API, our own, and those that are hints or refused."""
    schema = messages.MessagesRequest.model_json_schema()
    lines: list[str] = []
    for name, info in messages.MessagesRequest.model_fields.items():
        description = info.description or ""
        phrase = values(schema["properties"][name], schema.get("$defs", {}))
        here = "ours" if description.startswith(_OURS) else "supported"
        lines.append(row(f"`{name}`", here, phrase, sentence(description.removeprefix(_OURS))))
    own = fields.REQUEST
    words = [row(f"`{name}`", "word", f"for `{word.into}`", sentence(word.meaning)) for name, word in own.words.items()]
    rest = [*entries("hint", own.hints), *entries("refused", own.refused)]
    return table(
        ("field", "here", "values", "meaning"), [*sorted(lines, key=lambda one: "| ours |" in one), *words, *rest]
    )


def blocks_table() -> str:
    """Return the types of blocks: those that are taken, left out and refused."""
    kinds: list[tuple[str, Any]] = [
        ("`text`", blocks.TextBlock),
        ("`tool_use`", blocks.ToolUseBlock),
        ("`tool_result`", blocks.ToolResultBlock),
        ("`thinking`", blocks.ThinkingBlock),
        ("a tool", messages.UserTool),
        ("`output_config`", messages.OutputConfig),
        ("`thinking` of a request", messages.ThinkingOptions),
    ]
    lines = [row(name, _named(kind.model_fields), _named(kind.FIELDS.hints)) for name, kind in kinds]
    lines += [row(f"`{kind}`", "left out, and named", "") for kind in fields.LEFT_OUT_BLOCKS]
    lines += [row(f"`{kind}`", f"refused: {why}", "") for kind, why in fields.REFUSED_BLOCKS.items()]
    return table(("object", "taken", "hints"), lines)


def _named(names: Any) -> str:
    return ", ".join(f"`{name.rstrip('_')}`" for name in names)


TABLES = {"messages": request_table, "blocks": blocks_table}


def made() -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(DOCUMENT, MAKER, TABLES)


if __name__ == "__main__":
    main(DOCUMENT, MAKER, TABLES)
