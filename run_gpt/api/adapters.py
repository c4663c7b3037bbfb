"""LoRA adapters of a running server: list, load, unload."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from run_gpt.api.answers import Answer
from run_gpt.api.request import AnyRequest
from run_gpt.api.values import Path

NAME_PATTERN = r"^[A-Za-z0-9][\w.-]*$"
AdapterName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]


class ListAdaptersRequest(AnyRequest):
    """List the adapters that a request may name."""


class LoadAdapterRequest(AnyRequest):
    """Load an adapter in every replica."""

    name: AdapterName = Field(description="What requests will call it.")
    path: Path = Field(description="A folder in PEFT's format, on the machine of the model, or a hub id.")


class UnloadAdapterRequest(AnyRequest):
    """Unload an adapter in every replica, once the requests that use it have ended."""

    name: AdapterName = Field(description="Its name.")


class AdapterList(Answer):
    """Adapters that requests may name."""

    object: Literal["list"] = "list"
    adapters: list[str]
    default: str | None = None
    """Adapter of a request that names none; None: the model itself."""
