"""Contents of messages that are given in parts: their texts are joined as lines."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationInfo

from run_gpt.api.field_tables import PART
from run_gpt.api.fields import Table, sift
from run_gpt.api.values import Fault, shown

MAX_PARTS = 1024
"""Most parts of a message's content."""
PARTS = {"text": "text", "refusal": "refusal"}
"""Types of parts of a chat's message, with the field that has the text."""


def joined_parts(value: Any, info: ValidationInfo) -> Any:
    """Return the text of a chat's message that is given in parts; for a validator. Raises Fault."""
    return join(value, PARTS, PART, info.context)


def join(value: Any, kinds: Mapping[str, str], table: Table, context: Any) -> Any:
    """Return the joined text of parts; other values as they are. `kinds`: types of parts, with the field of the text.

    Raises Fault for a part of another type. `context`: see `sift`.
    """
    if not isinstance(value, list):
        return value
    if len(value) > MAX_PARTS:
        raise Fault(f"there are {len(value):,} parts, the limit is {MAX_PARTS:,}")
    return "\n".join([_text(i, part, kinds, table, context) for i, part in enumerate(value)])


def _text(at: int, part: Any, kinds: Mapping[str, str], table: Table, context: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(kind, str) or kind not in kinds:
        path = (at, "type") if isinstance(part, dict) else (at,)
        raise Fault(f"parts of the type {shown(kind)} are not supported, only {next(iter(kinds))!r}", *path)
    name = kinds[kind]
    if part.keys() != {"type", name}:
        try:
            part = sift(part, frozenset(("type", name)), table, context)
        except Fault as error:
            raise Fault(error.message, at, *error.path) from None
    if not isinstance(text := part.get(name), str):
        raise Fault(f"a part of the type {kind!r} has no text", at, name)
    return text
