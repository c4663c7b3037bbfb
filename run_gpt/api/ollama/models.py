"""The served models, as Ollama's API describes them."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from run_gpt.api.answers import Body
from run_gpt.api.ollama.answers import moment
from run_gpt.api.ollama.requests import TAG
from run_gpt.api.openai.models import ListModelsRequest, Model, RetrieveModelRequest
from run_gpt.api.values import NonEmptyName

Fields = dict[str, Any]


class Tags(Body):
    """The served models, or those of them that are in memory."""

    models: list[Fields]


class ShownModel(Body):
    """Description of a model."""

    details: Fields
    model_info: Fields
    capabilities: list[str]
    modified_at: str
    parameters: str


class TagsRequest(ListModelsRequest):
    """List the served models."""

    def listed(self, models: Sequence[Model]) -> Body:
        """See ListModelsRequest."""
        return Tags(models=[_tag(model) for model in models])


class RunningRequest(ListModelsRequest):
    """List the models in memory."""

    def listed(self, models: Sequence[Model]) -> Body:
        """See ListModelsRequest."""
        return Tags(models=[_running(model) for model in models if model.state == "loaded" and model.parent is None])


class ShowRequest(RetrieveModelRequest):
    """Describe a model."""

    model: NonEmptyName = Field(description="Its name.")

    @model_validator(mode="before")
    @classmethod
    def _without_tag(cls, data: Any) -> Any:
        name = data.get("model", data.get("name")) if isinstance(data, dict) else None
        return {"model": name.removesuffix(TAG)} if isinstance(name, str) else data

    def described(self, model: Model) -> Body:
        """See RetrieveModelRequest."""
        defaults = model.sampling_defaults or {}
        return ShownModel(
            details=_details(model),
            model_info={"general.architecture": "rungpt", "rungpt.context_length": model.max_model_len},
            capabilities=["completion", "tools", "insert"],
            modified_at=moment(model.created),
            parameters="\n".join(f"{name} {value}" for name, value in defaults.items()),
        )


def _details(model: Model) -> Fields:
    return {"format": "rungpt", "family": "", "families": [], "quantization_level": model.precision or ""}


def _tag(model: Model) -> Fields:
    name = model.id if ":" in model.id else model.id + TAG
    size, about = int(model.memory or 0), _details(model)
    return {
        "name": name, "model": name, "modified_at": moment(model.created), "size": size, "digest": "", "details": about
    }  # fmt: skip


def _running(model: Model) -> Fields:
    return {**_tag(model), "expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": model.max_model_len}
