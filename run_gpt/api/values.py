"""Values that several schemas share: texts, token ids, JSON objects that keep their order, contents in parts."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, SerializationInfo, StringConstraints, Tag

from run_gpt.errors import InvalidRequest

INT32_MAX = 2**31 - 1  # the widest integer a Jina document carries
DOCUMENT = "document"
"""Context of `model_dump` for values that become a Jina document."""

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
# With a constraint, pydantic refuses text that is not Unicode (a lone surrogate): neither gRPC nor JSON can carry it.
Text = Annotated[str, StringConstraints(min_length=0)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]

# More than 32 bits: a Jina document carries it as a float, JSON as an integer.
Bytes = Annotated[float, PlainSerializer(int, return_type=int, when_used="json-unless-none")]

TEXT_PARTS = ("text",)

OF_ANSWERS = ("annotations", "logprobs")
"""Fields that a response's `output_text` has beside its text. They are accepted, so an answer can be sent back."""


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"this is no JSON: {error}") from None


def _to_text(value: Any, info: SerializationInfo) -> Any:
    return json.dumps(value, ensure_ascii=False) if info.context == DOCUMENT else value


# Maps of a document have no order, and its integers have 32 bits. So a document has JSON text here, which requests
# accept everywhere.
JsonObject = Annotated[
    dict[str, Any],
    BeforeValidator(_from_text, json_schema_input_type=dict[str, Any]),
    PlainSerializer(_to_text, return_type=Any),
]


def _text_or_ids(value: Any) -> str:
    return "(ids)" if isinstance(value, list) else "(text)"


# A pydantic error in a union names the matching branch. These tags are in parentheses, so `field_path` drops them.
TextOrIds = Annotated[
    Annotated[NonEmpty, Tag("(text)")] | Annotated[TokenIds, Tag("(ids)")], Discriminator(_text_or_ids)
]


def field_path(location: tuple[int | str, ...]) -> str:
    """Return a path such as `messages.0.content` from the location in a pydantic error."""
    return ".".join(str(part) for part in location if not str(part).startswith("("))


def one_or_list(value: Any) -> Any:
    """Return a list with one text for a text; for a validator."""
    return [value] if isinstance(value, str) else value


def joined_parts(value: Any, *, kinds: tuple[str, ...] = TEXT_PARTS, param: str = "content") -> Any:
    """Return the joined text of a message's content that is given in parts; for a validator.

    `kinds`: the types of parts that are texts. Raises InvalidRequest for a part of another type.
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
