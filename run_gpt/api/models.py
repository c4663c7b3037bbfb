"""The models of a server: which there are, in which state, and requests to load and to unload them."""

from typing import Literal

from pydantic import Field

from run_gpt.api.answers import Answer
from run_gpt.api.schema import AnyRequest
from run_gpt.api.values import Bytes, NonEmpty

State = Literal["unloaded", "loading", "loaded", "failed", "unavailable"]
"""`failed`: it could not be loaded the last time; the next request tries again. `unavailable`: no replica answers."""


class LoadModelRequest(AnyRequest):
    """Load a model, and say how far that is."""

    model: NonEmpty = Field(description="Its name.")

    def check_stream(self) -> "LoadModelRequest":
        """See AnyRequest."""
        return self


class UnloadModelRequest(AnyRequest):
    """Unload a model that has nothing to do; the next request for it loads it again."""

    model: NonEmpty = Field(description="Its name.")


class ModelState(Answer):
    """The state of a model, and while it is loading how far that is."""

    object: Literal["model.state"] = "model.state"
    state: State
    step: str | None = None
    """What is being done, while it is loading."""
    done: Bytes | None = None
    """Bytes of this step that are done."""
    total: Bytes | None = None
    """Bytes of this step; null: not known."""
    memory: Bytes | None = None
    """Bytes that its weights and its cache take at most, in all replicas together, once it is loaded."""
