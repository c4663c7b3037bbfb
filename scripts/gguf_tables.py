"""Print the tables of docs/gguf.md, made from the code; `--write` writes them there. A test compares them."""

from pathlib import Path

from document_tables import main, row, table, with_tables

from run_gpt.models.gguf.architectures import ARCHITECTURES
from run_gpt.models.gguf.keys import DERIVED, NO_EFFECT, ONLY, ONLY_OF_FAMILY, READ
from run_gpt.models.gguf.pre_tokenizers import SPLITTINGS
from run_gpt.models.gguf.rotary import ROTARY_KEYS

DOCUMENT = Path(__file__).parents[1] / "docs" / "gguf.md"


def keys_table() -> str:
    """Return the table of keys of every family."""
    rows = [row(_code(keys.split(", ")), f"read: {use}") for keys, use in READ.items()]
    rows += [row(_code(ROTARY_KEYS, "FAMILY."), "read: rotary positions")]
    rows += [row(_code(DERIVED, "FAMILY."), "compared with the shapes of the weights")]
    for keys, prefix in ((ONLY, ""), (ONLY_OF_FAMILY, "FAMILY.")):  # a family may read the latter
        rows += [row(_code([key], prefix), f"only {_values(values)}") for key, values in keys.items()]
    rows += [row(_code([pattern.replace("|", "\\|")]), f"no effect: {why}") for pattern, why in NO_EFFECT.items()]
    return table(("key", "use"), rows)


def families_table() -> str:
    """Return the table of families, with the keys that each reads."""
    rows = [
        row(f"`{name}`", f"`{one.model_type}`", _code([*one.fields, *one.also]), "yes" if one.rotary else "no")
        for name, one in sorted(ARCHITECTURES.items())
    ]
    return table(("family in GGUF", "in transformers", "keys, after the family's name", "rotary keys"), rows)


def splittings_table() -> str:
    """Return the list of splittings of text."""
    return _code(sorted(SPLITTINGS))


def _code(names: list[str] | tuple[str, ...], prefix: str = "") -> str:
    return ", ".join(f"`{prefix}{name}`" for name in names)


def _values(values: tuple[object, ...]) -> str:
    return " or ".join(f"`{value}`" for value in values)


TABLES = {"keys": keys_table, "families": families_table, "splittings": splittings_table}


def made() -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(DOCUMENT, "scripts/gguf_tables.py", TABLES)


if __name__ == "__main__":
    main(DOCUMENT, "scripts/gguf_tables.py", TABLES)
