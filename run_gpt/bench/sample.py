"""`Sample`: what became of one request, and the latencies that are computed from it."""

from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Sample:
    """All times are seconds since the load began."""

    start: float
    """When it was sent; with a given rate, when it was due, so that a late client hides nothing."""
    events: list[float] = field(default_factory=list)
    """When each event with output came."""
    last: float | None = None
    """When the last event with output, or that says why the answer ended, came."""
    end: float = 0.0
    """When the answer was complete, or had failed."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens by the server's `usage`; None if it gave none."""
    max_tokens: int = 0
    """What was asked for."""
    failure: str | None = None
    """None, or the kind: `status 429`, `timeout`, `broken stream`, `connection`, `error CODE`."""
    detail: str = ""
    """What was said of the failure."""

    @property
    def ok(self) -> bool:
        """Whether the answer came whole."""
        return self.failure is None

    @property
    def tokens(self) -> int:
        """Tokens of the answer; its events where the server gave no usage."""
        return len(self.events) if self.output_tokens is None else self.output_tokens

    @property
    def first(self) -> float | None:
        """When the first event with output came; for an answer without any, when it said that it ended."""
        return self.events[0] if self.events else self.last

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds."""
        return None if self.first is None else self.first - self.start

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds; None for an answer of less than two."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Seconds between each two events with output."""
        return [b - a for a, b in zip(self.events, self.events[1:], strict=False)]

    @property
    def e2e(self) -> float:
        """Seconds until the answer was complete."""
        return self.end - self.start

    def to_dict(self) -> dict[str, Any]:
        """Its JSON; times to the microsecond."""
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
        """From its JSON. Raises TypeError for a field that is not known, or missing."""
        return cls(**data)
