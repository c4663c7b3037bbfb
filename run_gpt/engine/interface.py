"""Interface of an engine: requests in, token events out, adapters loaded and unloaded."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from run_gpt.engine.events import EventStream
from run_gpt.engine.heartbeat import Heartbeat
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.errors import RequestError

if TYPE_CHECKING:
    import torch

State = Literal["ready", "draining", "dead"]


@dataclass(frozen=True)
class EngineStats:
    """Current state of an engine, and its counts since the start (see plan.Counters)."""

    state: State
    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that wait for a slot."""
    kept: int = 0
    """Slots that hold an ended sequence for reuse."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0


class Outlet(Protocol):
    """Receiver of the events of one request, called on the event loop that started it."""

    def receive(self, event: TokenEvent) -> None:
        """Receive an event of one sequence. Those of several steps are merged into one event if the loop was busy."""

    def ended(self, error: RequestError | None) -> None:
        """Receive the end, exactly once, after the last `receive`: None when each sequence had its finish reason."""


class Engine(ABC):
    """Requests in, token events out. Thread-safe; requests may be started from any event loop."""

    heartbeat: Heartbeat

    @abstractmethod
    def start(self, request: Request, outlet: Outlet) -> None:
        """Queue a request. Its events go to `outlet` on the running event loop of the caller.

        The events of all requests of a step come with one wake-up of that loop. The outlet gets the end, also the end
        by the deadline, unless the request is aborted. If the outlet raises an error, its request is aborted and ends
        with InternalError.

        Raises QueueFull, Unavailable, InvalidRequest, ContextLengthExceeded or ModelNotFound; then the outlet is not
        called.
        """

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """End a request. Its outlet is not called again, not even for queued events. An unknown id is no error."""

    async def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yield the events of a request. The request starts at the first step of the iterator.

        The iterator ends when each of the request's sequences had an event with a finish reason. It raises the errors
        of `start`, and the error that the request ended with: Unavailable, DeadlineExceeded, InternalError. Closing it
        frees the request's slots.
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
        """Load a LoRA adapter (see lora.Lora for `weights`); blocks until requests can name it.

        Raises InvalidRequest if the name is taken or the adapter does not fit, Unavailable if the engine ends.
        """

    @abstractmethod
    def unload_adapter(self, name: str) -> None:
        """Refuse this adapter from now on, and free it when its last request has ended; blocks until then.

        Raises ModelNotFound if no adapter has this name, Unavailable if the engine ends before.
        """

    @property
    @abstractmethod
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Return the engine's current state and counts."""

    @abstractmethod
    def metrics(self) -> str:
        """Return the engine's metrics since its start, in Prometheus' text format."""

    @abstractmethod
    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, give running ones `drain_seconds` to finish, end the rest with Unavailable. Blocks."""
