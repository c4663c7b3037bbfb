"""`/v1/models`: the served models, as the gateway knows them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from run_gpt.api.answers import Body
from run_gpt.api.models import State
from run_gpt.api.request import AnyRequest
from run_gpt.api.values import Bytes, NonEmptyName


class Model(Body):
    """A served model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["model"] = "model"
    created: int
    """Time at which this server was started, in seconds since 1970."""
    owned_by: Literal["rungpt"] = "rungpt"
    root: str | None = None
    """Beyond OpenAI's: name by which the server shows the model, for its further names and its adapters."""
    parent: str | None = None
    """Beyond OpenAI's: name of the model that this LoRA adapter belongs to; null: it is a model."""
    max_model_len: int | None = None
    """Beyond OpenAI's: tokens that its context holds; null until a replica has reported it."""
    precision: str | None = None
    """Beyond OpenAI's: precision of most of its weights in memory, such as `bf16` or `bit4`; null: it is not loaded."""
    sampling_defaults: dict[str, Any] | None = None
    """Beyond OpenAI's: sampling parameters of requests that leave them unset, where they differ from OpenAI's defaults;
    null: it is not loaded."""
    state: State
    """Beyond OpenAI's: state of the model in memory."""
    memory: Bytes | None = None
    """Beyond OpenAI's: most bytes that it takes in all replicas together, once it is loaded; null: not known."""


class ModelList(Body):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ListModelsRequest(AnyRequest):
    """List the served models."""

    def listed(self, models: Sequence[Model]) -> Body:
        """Return the answer with these models and adapters."""
        return ModelList(data=list(models))


class RetrieveModelRequest(AnyRequest):
    """Describe one served model."""

    model: NonEmptyName = Field(description="Its name, or that of an adapter.")

    def described(self, model: Model) -> Body:
        """Return the answer for this model or adapter."""
        return model


ModelCard = Model
"""Earlier name."""
