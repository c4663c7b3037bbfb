"""When what happened to a sequence: how long it waited, ran its prompt and gave its answer. No clock here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class Times:
    """When what happened to a row, on time.perf_counter's clock; the engine's thread notes it (see EngineMetrics)."""

    arrived: float = 0.0
    started: float | None = None
    """The first step that ran a part of it began."""
    first: float | None = None
    """Its first token was there."""
    last: float = 0.0
    """Its last event was there."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The moments of a sequence that ended well, or of all of a request's: seconds on time.perf_counter's clock."""

    submitted: float
    started: float
    """The first step that ran a part of it began. Of beam search: the search began."""
    first: float | None
    """Its first token was there; None for one without any, such as an embedding. Of beam search: as `started`."""
    ended: float
    drafted: int = 0
    """Tokens that were drafted for it."""
    accepted: int = 0
    """Of these, found right."""

    @property
    def queue_seconds(self) -> float:
        """It waited for a slot and for a step."""
        return self.started - self.submitted

    @property
    def prefill_seconds(self) -> float:
        """Its prompt ran, up to its first token, or to its end if it has none."""
        return (self.ended if self.first is None else self.first) - self.started

    @property
    def decode_seconds(self) -> float:
        """From its first token to its end."""
        return 0.0 if self.first is None else self.ended - self.first

    @property
    def total_seconds(self) -> float:
        """The sum of the three."""
        return self.ended - self.submitted

    @classmethod
    def of_all(cls, each: Sequence[Self]) -> Self:
        """Those of one request's sequences as one: each moment is that of the first of them that came so far.

        It ends with the last of them. At least one must be given.
        """
        return cls(
            min(one.submitted for one in each),
            min(one.started for one in each),
            min((one.first for one in each if one.first is not None), default=None),
            max(one.ended for one in each),
            sum(one.drafted for one in each),
            sum(one.accepted for one in each),
        )
