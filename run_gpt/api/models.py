"""Models of a server: their states, and requests to load and to unload them."""

from typing import Literal

from pydantic import ConfigDict, Field

from run_gpt.api.answers import Answer
from run_gpt.api.request import AnyRequest
from run_gpt.api.values import Bytes, NonEmptyName

State = Literal["unloaded", "loading", "loaded", "failed", "unavailable"]
"""`failed`: the last load failed, and the next request tries again. `unavailable`: no replica answers."""


class LoadModelRequest(AnyRequest):
    """Load a model, and report the progress."""

    model: NonEmptyName = Field(description="Its name.")

    def check_stream(self) -> "LoadModelRequest":
        """See AnyRequest."""
        return self


class UnloadModelRequest(AnyRequest):
    """Unload an idle model; the next request for it loads it again."""

    model: NonEmptyName = Field(description="Its name.")


class ModelState(Answer):
    """State of a model, and the progress while it is loading."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["model.state"] = "model.state"
    state: State
    """State of the model in memory; `failed`: the last load failed, and the next request tries again."""
    step: str | None = None
    """Current step of loading."""
    done: Bytes | None = None
    """Bytes of this step that are done."""
    total: Bytes | None = None
    """Bytes of this step in all; null: not known."""
    memory: Bytes | None = None
    """Most bytes that its weights and KV cache take in all replicas together, once it is loaded."""
