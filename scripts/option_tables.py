"""Print the documents' tables of settings, made from the configuration; `--write` writes them there.

A test compares them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from document_tables import main, row, table, with_tables

from run_gpt.config import EngineConfig, ModelConfig, ServeConfig, ServedModel, flag_of, options_of

DOCS = Path(__file__).parents[1] / "docs"


def engine_table() -> str:
    """Return the table of the engine's options on the command line, and of the precision."""
    rows = []
    for config, names in ((ModelConfig, {"precision"}), (EngineConfig, options_of(EngineConfig).keys())):
        for name, option in options_of(config).items():
            if name in names:
                flag = flag_of(name, option)
                flags = f"`{flag}`, `--no-{flag[2:]}`" if getattr(config, name) is True else f"`{flag}`"
                rows.append(row(flags, _default(name, config), _meaning(name, config)))
    return table(("option", "default", "meaning"), rows)


def model_table() -> str:
    """Return the table of the keys of one model in models.yml."""
    return table(("of each model", "default", "meaning"), _rows(ServedModel, options_of(ServedModel)))


def server_table() -> str:
    """Return the table of the keys of the server in models.yml."""
    own = [name for name in options_of(ServeConfig) if name not in options_of(ServedModel) and name != "api_key"]
    return table(("of the server", "default", "meaning"), _rows(ServeConfig, own))


def _rows(config: type[Any], names: Iterable[str]) -> list[str]:
    keys = {"model_name": "`name`, `model_name`"}
    return [row(keys.get(name, f"`{name}`"), _default(name, config), _meaning(name, config)) for name in names]


def _meaning(name: str, config: type[Any]) -> str:
    """Return a setting's text, with its choices if it has some."""
    kind = get_type_hints(config)[name]
    choices = ", ".join(f"`{value}`" for value in get_args(kind)) if get_origin(kind) is Literal else ""
    return f"{options_of(config)[name].help}{choices and f' One of {choices}.'}"


def _default(name: str, config: type[Any]) -> str:
    """Return a field's default; nothing for one that its text gives."""
    default = getattr(config, name)
    if default is None or default == () or options_of(config)[name].by_position:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"`{default}`" if isinstance(default, str) else f"{default:.12g}"


TABLES = {
    DOCS / "engine.md": {"engine": engine_table},
    DOCS / "many-models.md": {"model": model_table, "server": server_table},
}


def made(document: Path) -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(document, "scripts/option_tables.py", TABLES[document])


if __name__ == "__main__":
    for document, tables in TABLES.items():
        main(document, "scripts/option_tables.py", tables)
