"""Values that several schemas have: texts, token ids, JSON objects whose order counts, contents in parts."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, SerializationInfo, StringConstraints, Tag

from run_gpt.errors import InvalidRequest

INT32_MAX = 2**31 - 1  # the widest integer a Jina document carries
DOCUMENT = "document"
"""The context of `model_dump` for what becomes a Jina document."""

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
# With a constraint, pydantic refuses what is not Unicode (a lone surrogate), which no door can carry.
Text = Annotated[str, StringConstraints(min_length=0)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]

# More than 32 bits: a Jina document carries it as a float, and JSON as the whole number that it is.
Bytes = Annotated[float, PlainSerializer(int, return_type=int, when_used="json-unless-none")]

TEXT_PARTS = ("text",)

OF_ANSWERS = ("annotations", "logprobs")
"""What a response's `output_text` has beside its text: it may be sent back as it came."""


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"this is no JSON: {error}") from None


def _to_text(value: Any, info: SerializationInfo) -> Any:
    return json.dumps(value, ensure_ascii=False) if info.context == DOCUMENT else value


# The maps of a document have no order, and its integers 32 bits: there it is JSON text, which is taken everywhere.
JsonObject = Annotated[
    dict[str, Any],
    BeforeValidator(_from_text, json_schema_input_type=dict[str, Any]),
    PlainSerializer(_to_text, return_type=Any),
]


def _text_or_ids(value: Any) -> str:
    return "(ids)" if isinstance(value, list) else "(text)"


# An error in a union names the part of it that was meant, here in parentheses, which `field_path` leaves out.
TextOrIds = Annotated[
    Annotated[NonEmpty, Tag("(text)")] | Annotated[TokenIds, Tag("(ids)")], Discriminator(_text_or_ids)
]


def field_path(location: tuple[int | str, ...]) -> str:
    """`messages.0.content`, from the location in a pydantic error."""
    return ".".join(str(part) for part in location if not str(part).startswith("("))


def one_or_list(value: Any) -> Any:
    """A text as a list of one; for a validator."""
    return [value] if isinstance(value, str) else value


def joined_parts(value: Any, *, kinds: tuple[str, ...] = TEXT_PARTS, param: str = "content") -> Any:
    """The text of a message's content that is given in parts; for a validator. Raises InvalidRequest for another kind.

    `kinds`: the types of parts that are texts.
    """
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in kinds:
            raise InvalidRequest(
                f"{param}: parts of the type {kind!r} are not supported, only {kinds[0]!r}", param=param
            )
        for name in part.keys() - {"type", "text", *(OF_ANSWERS if kind == "output_text" else ())}:
            raise InvalidRequest(f"{param}: a part's field {name!r} is not known here", param=param)
        if not isinstance(text := part.get("text"), str):
            raise InvalidRequest(f"{param}: a part of the type {kind!r} has no text", param=param)
        texts.append(text)
    return "\n".join(texts)
