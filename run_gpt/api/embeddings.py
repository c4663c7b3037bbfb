"""Embeddings: texts in, a vector for each."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from run_gpt.api.answers import Answer
from run_gpt.api.schema import ADAPTER, AnyRequest, NonEmpty, Text

MAX_TEXTS = 1024


class EmbedRequest(AnyRequest):
    """Make a vector of each text: its hidden states after the model's last norm, pooled, of length 1."""

    texts: Annotated[
        list[NonEmpty],
        Field(min_length=1, max_length=MAX_TEXTS),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=list[str]),
    ] = Field(description=f"One text or up to {MAX_TEXTS}.")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="Of all tokens the mean (the default), or the last token alone."
    )
    adapter: Text | None = Field(None, description=ADAPTER)


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float]


class EmbeddingUsage(BaseModel):
    """Tokens of all texts together."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    """The vectors of the texts, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    usage: EmbeddingUsage

    @property
    def vectors(self) -> list[list[float]]:
        """[texts, hidden size]."""
        return [item.embedding for item in self.data]
