"""Times of a sequence: waiting, prefill and decode. This module reads no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class Times:
    """Times of a running sequence on time.perf_counter's clock; set by the engine's thread (see EngineMetrics)."""

    arrived: float = 0.0
    started: float | None = None
    """Start of the first step that ran a part of it."""
    first: float | None = None
    """Time of its first token."""
    last: float = 0.0
    """Time of its last event."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a sequence that ended without error, or of all sequences of a request; on time.perf_counter's clock."""

    submitted: float
    started: float
    """Start of the first step that ran a part of it; for beam search, start of the search."""
    first: float | None
    """Time of its first token; None if it has none, such as an embedding. For beam search the same as `started`."""
    ended: float
    drafted: int = 0
    """Number of tokens that were drafted for it."""
    accepted: int = 0
    """Number of drafted tokens that were accepted."""

    @property
    def queue_seconds(self) -> float:
        """Time spent waiting for a slot and for a step."""
        return self.started - self.submitted

    @property
    def prefill_seconds(self) -> float:
        """Time of prefill: up to its first token, or to its end if it has none."""
        return (self.ended if self.first is None else self.first) - self.started

    @property
    def decode_seconds(self) -> float:
        """Time from its first token to its end."""
        return 0.0 if self.first is None else self.ended - self.first

    @property
    def total_seconds(self) -> float:
        """Sum of the three."""
        return self.ended - self.submitted

    @classmethod
    def of_all(cls, each: Sequence[Self]) -> Self:
        """Combine the timings of one request's sequences, at least one.

        Each time is that of the first sequence to reach it, except the end, which is that of the last sequence.
        """
        return cls(
            min(one.submitted for one in each),
            min(one.started for one in each),
            min((one.first for one in each if one.first is not None), default=None),
            max(one.ended for one in each),
            sum(one.drafted for one in each),
            sum(one.accepted for one in each),
        )
