"""What an engine is to those who use it: requests in, token events out, adapters that come and go."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from run_gpt.engine.request import Request, TokenEvent

if TYPE_CHECKING:
    import torch

State = Literal["ready", "draining", "dead"]


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, and what it has done since its start (see scheduler.Counters)."""

    state: State
    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that wait for a place."""
    kept: int = 0
    """Slots that hold an ended sequence for reuse."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0


class Engine(ABC):
    """Requests in, token events out. Thread-safe; `submit` may be used from any event loop."""

    @abstractmethod
    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """The events of a request, which begins to run when the iterator is first asked.

        The iterator ends when each of the request's sequences had an event with a finish reason. It raises a
        RequestError: QueueFull, Unavailable, DeadlineExceeded, InternalError. Closing it frees the request's slots.
        """

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """End a request without a word to its consumer; an unknown id is no error."""

    @abstractmethod
    def load_adapter(self, name: str, weights: "Mapping[str, tuple[torch.Tensor, torch.Tensor]]") -> None:
        """Let requests name this LoRA adapter (see lora.Lora for `weights`); blocks until they can.

        Raises InvalidRequest if the name is taken or the adapter does not fit, Unavailable if the engine ends.
        """

    @abstractmethod
    def unload_adapter(self, name: str) -> None:
        """Refuse this adapter from now on, and free it when the requests that have it have ended; blocks until then.

        Raises ModelNotFound if there is none of this name, Unavailable if the engine ends before.
        """

    @property
    @abstractmethod
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that requests may name."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """What the engine is doing now."""

    @abstractmethod
    def metrics(self) -> str:
        """What it has counted and measured since its start, in Prometheus' text form."""

    @abstractmethod
    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run finish for so long, end the rest with Unavailable. Blocks."""
