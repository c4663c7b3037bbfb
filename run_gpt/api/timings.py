"""Timings of an answer, which has them if the request asks for `timings`."""

from pydantic import BaseModel, Field

TIMINGS = "Say in the answer how long it took, as `timings`; of a stream, in its last event."


class Timings(BaseModel):
    """Times of an answer in seconds, from the moment at which the model's engine got the request.

    For a request with several answers, each moment is the earliest of them all, except the end, which is that of the
    last answer. Beam search has no separate prefill: it counts in `decode_seconds`.
    """

    queue_seconds: float
    """Time in the queue, before the request got a slot in the batch."""
    prefill_seconds: float
    """Time of the prefill, up to the first token of the answer."""
    decode_seconds: float
    """Time from the first token to the last."""
    total_seconds: float
    """Sum of the three."""
    prompt_tokens_per_second: float | None = Field(None, exclude_if=lambda value: value is None)
    """Tokens of the prompt that were run (not reused), divided by `prefill_seconds`; left out if that is 0."""
    generation_tokens_per_second: float | None = Field(None, exclude_if=lambda value: value is None)
    """Tokens after the first one of each answer, divided by `decode_seconds`; left out if that is 0."""
    drafted_tokens: int = 0
    """Number of tokens that were drafted, so that the model could check several at once."""
    accepted_tokens: int = 0
    """Number of drafted tokens that the model accepted."""
