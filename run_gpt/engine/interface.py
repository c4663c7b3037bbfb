"""What an engine is to those who use it: requests in, token events out, adapters that come and go."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from run_gpt.engine.events import EventStream
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.errors import RequestError

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


class Outlet(Protocol):
    """Takes what is new of one request, on the event loop that started it."""

    def receive(self, event: TokenEvent) -> None:
        """Take the news of one sequence; that of several steps comes as one event if the loop was busy."""

    def ended(self, error: RequestError | None) -> None:
        """Hear the end, exactly once, after the last `receive`: None when each sequence had its finish reason."""


class Engine(ABC):
    """Requests in, token events out. Thread-safe; requests may be started from any event loop."""

    @abstractmethod
    def start(self, request: Request, outlet: Outlet) -> None:
        """Queue a request; what is new of it comes to `outlet` on the running event loop of the caller.

        The news of all requests of a step comes by one wake-up of that loop. The outlet hears the end, also that of
        the deadline, unless the request is aborted. If it raises, its request is aborted and ends with InternalError.

        Raises QueueFull, Unavailable, InvalidRequest, ContextLengthExceeded or ModelNotFound; then it hears nothing.
        """

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """End a request without a word to its outlet, not even of what was on its way; an unknown id is no error."""

    async def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yield the events of a request, which begins to run when the iterator is first asked.

        The iterator ends when each of the request's sequences had an event with a finish reason. It raises what `start`
        raises, and what the request ended with: Unavailable, DeadlineExceeded, InternalError. Closing it frees the
        request's slots.
        """
        events = EventStream()
        self.start(request, events)
        try:
            async for event in events:
                yield event
        finally:
            if not events.over:
                self.abort(request.id)

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
