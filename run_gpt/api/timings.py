"""How long an answer took, which it says when it is asked for `timings`."""

from pydantic import BaseModel, Field

TIMINGS = "Say in the answer how long it took, as `timings`; of a stream, in its last event."


class Timings(BaseModel):
    """Where the time of an answer went, in seconds, from when the model's engine got the request.

    Of a request with several answers each moment is that of the first of them that comes so far, and the end is that
    of the last. Beam search has no prefill of its own: it is in `decode_seconds`.
    """

    queue_seconds: float
    """It waited for a place in the batch."""
    prefill_seconds: float
    """The prompt ran, up to the first token of the answer."""
    decode_seconds: float
    """From the first token to the last."""
    total_seconds: float
    """The sum of the three."""
    prompt_tokens_per_second: float | None = Field(None, exclude_if=lambda value: value is None)
    """Tokens of the prompt that were run, not those that were reused, by `prefill_seconds`; left out if that is 0."""
    generation_tokens_per_second: float | None = Field(None, exclude_if=lambda value: value is None)
    """Tokens after the first one of each answer, by `decode_seconds`; left out if that is 0."""
    drafted_tokens: int = 0
    """Tokens that were drafted, to be checked several at once."""
    accepted_tokens: int = 0
    """Of these, found right."""
