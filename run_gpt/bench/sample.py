"""`Sample`: the outcome of one request, and the latencies computed from it."""

from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Sample:
    """Outcome of one request. All times are seconds since the load began."""

    start: float
    """Time at which it was sent; at a given rate, the time at which it was due, so that delays of the client count."""
    events: list[float] = field(default_factory=list)
    """Arrival time of each event with output."""
    last: float | None = None
    """Arrival time of the last event with output or with the finish reason."""
    end: float = 0.0
    """Time at which the answer was complete or had failed."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens by the server's `usage`, like the two above; None if it gave none."""
    max_tokens: int = 0
    """The request's maximum of new tokens."""
    failure: str | None = None
    """Kind of failure: `status 429`, `timeout`, `broken stream`, `connection`, `error CODE`; None if there was none."""
    detail: str = ""
    """Error message of the failure."""

    @property
    def ok(self) -> bool:
        """True when the answer is complete."""
        return self.failure is None

    @property
    def tokens(self) -> int:
        """Number of tokens of the answer; the number of its events if the server gave no usage."""
        return len(self.events) if self.output_tokens is None else self.output_tokens

    @property
    def first(self) -> float | None:
        """Arrival time of the first event with output; for an answer without output, of its finish reason."""
        return self.events[0] if self.events else self.last

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds."""
        return None if self.first is None else self.first - self.start

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds; None for an answer with fewer than two tokens."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: seconds between consecutive events with output."""
        return [b - a for a, b in zip(self.events, self.events[1:], strict=False)]

    @property
    def e2e(self) -> float:
        """End-to-end latency: seconds until the answer was complete."""
        return self.end - self.start

    def to_dict(self) -> dict[str, Any]:
        """Convert the sample for JSON, with times rounded to microseconds."""
        return {
            "start": round(self.start, 6),
            "events": [round(time, 6) for time in self.events],
            "last": None if self.last is None else round(self.last, 6),
            "end": round(self.end, 6),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
            "max_tokens": self.max_tokens,
            "failure": self.failure,
            "detail": self.detail,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Restore a sample from its JSON. Raises TypeError for an unknown or missing field."""
        return cls(**data)
