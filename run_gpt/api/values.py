"""Values that several schemas share: texts, token ids, JSON objects that keep their order, contents in parts."""

import json
import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    SerializationInfo,
    StringConstraints,
    Tag,
)

from run_gpt.api.json_text import MAX_TOKEN_IDS, check_object, parse_json
from run_gpt.errors import InvalidRequest

INT32_MAX = 2**31 - 1  # the widest integer a Jina document carries
DOCUMENT = "document"
"""Context of `model_dump` for values that become a Jina document."""

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
# With a constraint, pydantic refuses text that is not Unicode (a lone surrogate): neither gRPC nor JSON can carry it.
Text = Annotated[str, StringConstraints(min_length=0)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
# After the first wrong id no others are looked at: an error for each of 100,000 would take seconds.
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
Name = Annotated[str, StringConstraints(max_length=256)]
NonEmptyName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

# More than 32 bits: a Jina document carries it as a float, JSON as an integer.
Bytes = Annotated[float, PlainSerializer(int, return_type=int, when_used="json-unless-none")]


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, "this")
    except InvalidRequest as error:
        raise ValueError(error.message) from None


def _to_text(value: Any, info: SerializationInfo) -> Any:
    return json.dumps(value, ensure_ascii=False) if info.context == DOCUMENT else value


# Maps of a document have no order, and its integers have 32 bits. So a document has JSON text here, which requests
# accept everywhere.
JsonObject = Annotated[
    dict[str, Any],
    BeforeValidator(_from_text, json_schema_input_type=dict[str, Any]),
    AfterValidator(check_object),
    PlainSerializer(_to_text, return_type=Any),
]


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("only false is supported here")
    return value


# `Literal[False]` would take 0, too, since both are equal.
OnlyFalse = Annotated[bool, AfterValidator(_only_false), Field(json_schema_extra={"const": False})]


def _text_or_ids(value: Any) -> str:
    return "(ids)" if isinstance(value, list) else "(text)"


# A pydantic error in a union names the matching branch. These tags are in parentheses, so `field_path` drops them.
TextOrIds = Annotated[
    Annotated[NonEmpty, Tag("(text)")] | Annotated[TokenIds, Tag("(ids)")], Discriminator(_text_or_ids)
]
AnyTextOrIds = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[TokenIds, Tag("(ids)")], Discriminator(_text_or_ids)
]
"""A text, which may be empty, or token ids."""


def few_ids(prompts: list[Any]) -> list[Any]:
    """Return prompts or texts; for a validator. Raises ValueError for more than MAX_TOKEN_IDS token ids in all."""
    ids = sum(len(prompt) for prompt in prompts if isinstance(prompt, list))
    if ids > MAX_TOKEN_IDS:
        raise ValueError(f"there are {ids:,} token ids, the limit is {MAX_TOKEN_IDS:,}")
    return prompts


def require_text(prompt: Any, suffix: str | None, param: str) -> None:
    """Raise InvalidRequest for an empty prompt, unless a suffix follows the answer."""
    if prompt == "" and not suffix:
        raise InvalidRequest(f"{param}: string should have at least 1 character, got ''", param=param)


def field_path(location: Sequence[int | str]) -> str:
    """Return a path such as `messages[0].content` from the location in a pydantic error."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if not str(part).startswith("(")]
    return "".join(parts).removeprefix(".")


class Fault(ValueError):
    """Fault of a value at `path` below the one that a validator gets. See `invalid_request`."""

    def __init__(self, message: str, *path: int | str):
        super().__init__(message)
        self.message, self.path = message, path


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)  # it sorts all members


_shorten = _Repr()


def shown(value: Any) -> str:
    """Return a value for an error's message: one short line, however large it is."""
    text = _shorten.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_minus_one(value: Any) -> bool:
    """Return True for the integer with which other servers turn a limit off."""
    return type(value) is int and value == -1


def one_or_list(value: Any) -> Any:
    """Return a list with one text for a text; for a validator."""
    return [value] if isinstance(value, str) else value
