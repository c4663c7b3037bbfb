"""`/v1/embeddings`: a vector for each text."""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from pydantic import BaseModel, Field

from run_gpt.api import embeddings as native
from run_gpt.api.answers import Answer
from run_gpt.api.embeddings import MAX_TEXTS, EmbeddingUsage, EmbedRequest, VectorWriter
from run_gpt.api.field_tables import EMBEDDING
from run_gpt.api.openai.base import OpenAIAnswer, OpenAIRequest
from run_gpt.api.openai.completions import Prompts
from run_gpt.api.schema import ADAPTER, CACHE_SALT, CacheSalt
from run_gpt.api.values import Name


class EmbeddingRequest(OpenAIRequest):
    """Make a vector of each text."""

    FIELDS: ClassVar = EMBEDDING
    DIFFERS: ClassVar = {**OpenAIRequest.DIFFERS, "input": "OpenAI's: up to 2048."}
    NATIVE_NAMES: ClassVar = {"texts": "input"}

    input: Prompts = Field(description=f"A text, token ids, or a list of up to {MAX_TEXTS} of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` (the default), or `base64` of the 32-bit floats."
    )
    adapter: Name | None = Field(None, description=f"Beyond OpenAI's: {ADAPTER}")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond OpenAI's: {CACHE_SALT}")

    def make_natives(self) -> Sequence[EmbedRequest]:
        """See TranslatedRequest."""
        same = {"model": self.model, "adapter": self.adapter, "cache_salt": self.cache_salt}
        return [EmbedRequest.parse({**same, "texts": self.input, "encoding_format": self.encoding_format})]

    def part_writer(self) -> VectorWriter:
        """See AnyRequest."""
        return VectorWriter(self.encoding_format)

    def join(self, answers: Sequence[Answer]) -> Answer:
        """See TranslatedRequest."""
        whole = cast("native.Embeddings", answers[0])
        data = [OpenAIEmbedding(object="embedding", index=item.index, embedding=item.embedding) for item in whole.data]
        return CreateEmbeddingResponse(
            object="list", data=data, usage=whole.usage, id=whole.id, created=whole.created, model=whole.model
        )


class OpenAIEmbedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class CreateEmbeddingResponse(OpenAIAnswer):
    """The answer to `/v1/embeddings`."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    usage: EmbeddingUsage
