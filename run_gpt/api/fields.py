"""Fields of requests beside those of the schemas: refused ones, hints, and other servers' words for ours.

Each schema has a table (see field_tables.py), by which `Sifted` sifts its input before anything else looks at it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

from run_gpt.api.values import Fault, shown
from run_gpt.errors import InvalidRequest

Rules = Literal["usual", "strict", "lenient"]
"""Rules for fields. strict: hints are refused, too. lenient: unknown fields are ignored, too."""
HEADER = "X-RunGPT-Ignored"
"""Header of an answer that names the fields of its request that had no effect."""
METADATA = HEADER.lower()
"""The same in the trailing metadata of a gRPC call."""
MOST_NAMES = 32
"""Most names in the header."""
MOST_NAME = 64
"""Most characters of a name there, and of one that is compared with known ones."""


@dataclass(frozen=True)
class Entry:
    """A field without an effect, or a refused one."""

    why: str
    granted: tuple[Any, ...] = ()
    """Values that ask for what happens here anyway: they are always taken, and not named as ignored."""

    def grants(self, value: Any) -> bool:
        """Return True for a value that asks for what happens anyway."""
        return value is None or any(value == one and type(value) is type(one) for one in self.granted)


@dataclass(frozen=True)
class Word:
    """Another name for a field, with other values."""

    into: str
    """Name of the field here."""
    meaning: str = ""
    make: Callable[[Any], Any] = lambda value: value
    """Function from the given value to that of the field; None stands for nothing. It raises ValueError."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Fields of one kind of object beside its schema's, each with the reason."""

    place: str = ""
    """Path of the objects in a request, for names in the header."""
    refused: Mapping[str, Entry] = field(default_factory=dict)
    """Fields that would change the answer, and that cannot be honoured."""
    hints: Mapping[str, Entry] = field(default_factory=dict)
    """Fields without an effect on the answer."""
    words: Mapping[str, Word] = field(default_factory=dict)
    """Other servers' words for fields here."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self.refused, *self.hints, *self.words)


class Intake:
    """Rules for the fields of one request, and the names of those that had no effect."""

    def __init__(self, rules: Rules = "usual"):
        self.rules = rules
        self._ignored: dict[str, None] = {}

    def ignore(self, name: str) -> None:
        """Note the path of a field as ignored, bounded and safe in a header: it may be a client's own word."""
        if len(self._ignored) < MOST_NAMES:
            self._ignored[quote(name[:MOST_NAME], safe="._-$", errors="replace")[:MOST_NAME]] = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the ignored fields."""
        return tuple(self._ignored)


def ignored_header(ignored: tuple[str, ...]) -> dict[str, str]:
    """Return the header with these names; empty for none."""
    return {HEADER: ", ".join(ignored)} if ignored else {}


def sift(data: Any, known: frozenset[str], table: Table, context: Any) -> Any:
    """Return an object's fields that a schema knows, words translated. Raises Fault for a refused one.

    `context`: the Intake; without one, the usual rules hold.
    """
    if not isinstance(data, dict) or data.keys() <= known:
        return data
    intake = context if isinstance(context, Intake) else Intake()
    kept = {name: value for name, value in data.items() if name in known}
    for name, value in data.items():
        if name not in known:
            _take(name, value, kept, known, table, intake)
    return kept


def _take(name: str, value: Any, kept: dict[str, Any], known: frozenset[str], table: Table, intake: Intake) -> None:
    """Translate, drop or refuse one field that the schema does not have."""
    if word := table.words.get(name):
        _translate(name, value, word, kept)
    elif entry := table.refused.get(name):
        if not entry.grants(value):
            raise Fault(f"this is not supported here: {entry.why}", name)
    elif entry := table.hints.get(name):
        if entry.grants(value) or value in ("", [], {}):
            return
        if intake.rules == "strict":
            raise Fault(f"this has no effect here ({entry.why}), and the server has --strict-fields", name)
        intake.ignore(table.place + name)
    elif intake.rules == "lenient":
        intake.ignore(table.place + name)
    else:
        raise unknown_field(name, {*known, *table.names})


def _translate(name: str, value: Any, word: Word, kept: dict[str, Any]) -> None:
    try:
        made = None if value is None else word.make(value)
    except ValueError as error:
        raise Fault(f"{error}, got {shown(value)}", name) from None
    if made is None:
        return
    before = kept.get(word.into)
    if isinstance(before, dict) and isinstance(made, dict) and not before.keys() & made.keys():
        made = {**before, **made}
    elif before not in (None, made):
        message = f"{name} = {shown(value)} and {word.into} = {shown(before)} mean the same: give one of them"
        raise InvalidRequest(message, param=name)
    kept[word.into] = made


def unknown_field(name: str, known: set[str]) -> Fault:
    """Return the fault of an unknown field, with the nearest known names."""
    near = difflib.get_close_matches(name[:MOST_NAME], sorted(known), n=2, cutoff=0.55)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return Fault(f"this field is not known here{hint}", name)


class Sifted(BaseModel):
    """Base of the schemas of requests, and of objects in them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    FIELDS: ClassVar[Table] = Table()
    """Fields beside the schema's own."""

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, data: Any, info: ValidationInfo) -> Any:
        return sift(data, _known(cls), cls.FIELDS, info.context)


@cache
def _known(schema: type[Sifted]) -> frozenset[str]:
    by_name = schema.model_config.get("validate_by_name", False)
    return frozenset(
        one
        for name, info in schema.model_fields.items()
        for one in ((name, info.alias) if by_name and info.alias else (info.alias or name,))
    )
