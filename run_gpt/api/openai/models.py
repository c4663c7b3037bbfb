"""`/v1/models`: what is served, as the gateway knows it."""

from typing import Literal

from pydantic import Field

from run_gpt.api.answers import Body
from run_gpt.api.models import State
from run_gpt.api.schema import AnyRequest
from run_gpt.api.values import Bytes, NonEmpty


class ListModelsRequest(AnyRequest):
    """Say which models are served."""


class RetrieveModelRequest(AnyRequest):
    """Say what is known of one model."""

    model: NonEmpty = Field(description="Its name.")


class ModelCard(Body):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this server was started."""
    owned_by: Literal["rungpt"] = "rungpt"
    max_model_len: int | None = None
    """Beyond OpenAI's: tokens that its context holds; null until a replica has said it."""
    state: State
    """Beyond OpenAI's: whether it is in memory."""
    memory: Bytes | None = None
    """Beyond OpenAI's: bytes that it takes at most in all replicas together, once it is loaded; null: not known."""


class ModelList(Body):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
