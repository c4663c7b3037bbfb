"""Embeddings: requests with texts, and answers with a vector for each text."""

import base64
import struct
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from run_gpt.api.answers import Answer
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ADAPTER, CACHE_SALT, CacheSalt
from run_gpt.api.values import Name, TextOrIds, few_ids, one_or_list

MAX_TEXTS = 1024


class EmbedRequest(AnyRequest):
    """Make a vector of each text: its hidden states after the model's last norm, pooled and scaled to length 1."""

    texts: Annotated[
        list[TextOrIds],
        Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True),
        AfterValidator(few_ids),
        BeforeValidator(one_or_list, json_schema_input_type=list[str | list[int]] | str),
    ] = Field(description=f"One text or up to {MAX_TEXTS}, or the token ids of each.")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="Of all tokens the mean (the default), or the last token alone."
    )
    adapter: Name | None = Field(None, description=ADAPTER)
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Of a vector: a list of numbers (the default), or its bytes as 32-bit floats, little-endian."
    )
    cache_salt: CacheSalt | None = Field(None, description=CACHE_SALT)

    def part_writer(self) -> "VectorWriter":
        """See AnyRequest."""
        return VectorWriter(self.encoding_format)


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or base64 if the request asks for it."""

    @property
    def vector(self) -> list[float]:
        """The vector as numbers, of shape [hidden size]."""
        return unpacked(self.embedding) if isinstance(self.embedding, str) else self.embedding


class EmbeddingUsage(BaseModel):
    """Number of tokens of all texts together."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    """The vectors of the texts, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    usage: EmbeddingUsage

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors as numbers, of shape [texts, hidden size]."""
        return [item.vector for item in self.data]


def floats(vector: Sequence[float]) -> bytes:
    """Return a vector's 32-bit floats, little-endian."""
    return struct.pack(f"<{len(vector)}f", *vector)


def packed(vector: Sequence[float]) -> str:
    """Return a vector's 32-bit floats, little-endian, in base64."""
    return base64.b64encode(floats(vector)).decode()


def unpacked(text: str) -> list[float]:
    """Return the vector that `packed` wrote."""
    return _numbers(base64.b64decode(text))


def _numbers(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def vector_of(data: bytes, encoding_format: str | None) -> list[float] | str:
    """Return the vector that `floats` wrote, in the form that a request asks for."""
    return base64.b64encode(data).decode() if encoding_format == "base64" else _numbers(data)


class VectorWriter:
    """Writer of vectors in the form that a request asks for (see api.long_parts.PartWriter)."""

    def __init__(self, encoding_format: str | None):
        self._format = encoding_format

    def __call__(self, sequence: Hashable, parts: Sequence[bytes]) -> bytes:
        """Write one vector."""
        return msgspec.json.encode(vector_of(parts[0], self._format))
