"""Common parts of requests of OpenAI's API: native requests, refused fields, sampling, usage."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from run_gpt.api.answers import Answer, CompletionTokensDetails, Generation, PromptTokensDetails, Usage
from run_gpt.api.chat import ResponseFormat
from run_gpt.api.field_tables import STREAM_OPTIONS
from run_gpt.api.fields import Sifted
from run_gpt.api.schema import (
    ADAPTER,
    CACHE_KEY,
    CACHE_SALT,
    MAX_SEQUENCES,
    CacheSalt,
    LogitBias,
    PromptCacheKey,
    StopTexts,
    StopTokenIds,
    TopK,
)
from run_gpt.api.timings import TIMINGS, Timings
from run_gpt.api.translated import TranslatedRequest
from run_gpt.api.values import INT32_MAX, Name, Text, is_minus_one
from run_gpt.errors import InvalidRequest

Metadata = Annotated[dict[Text, Text], Field(max_length=16)]
LEAST_TOP_P = 1e-9
DEFAULT_TEMPERATURE = 1.0
"""Temperature of a request without one, if the model has no sampling defaults."""
TEMPERATURE = "0 is greedy; default: the model's, else 1."
DEFAULT_MAX_TOKENS = 4096
"""Default of most tokens in a chat's answer. OpenAI's default is the rest of the context. But each sequence reserves
memory for its longest answer, and with whole contexts only few sequences could run together."""
MAX_TOKENS = f"Most tokens in an answer; default {DEFAULT_MAX_TOKENS}; -1: what the model's context leaves."


def _unlimited(value: Any) -> Any:
    return INT32_MAX if is_minus_one(value) else value


Length = Annotated[int, Field(ge=1, le=INT32_MAX), BeforeValidator(_unlimited)]
LengthOrNone = Annotated[int, Field(ge=0, le=INT32_MAX), BeforeValidator(_unlimited)]


class OpenAIAnswer(Answer):
    """An answer of OpenAI's API. Its JSON has the fields that were set, nulls included."""

    def to_json(self) -> str:
        """Return the wire's JSON."""
        return self.model_dump_json(exclude_unset=True)


class OpenAIRequest(TranslatedRequest):
    """A request of OpenAI's API."""

    DIFFERS: ClassVar[Mapping[str, str]] = {"model": "OpenAI's must be given."}

    user: Text | None = Field(None, description="Who asks: it stands in the request log (`--log-requests`).")
    safety_identifier: Text | None = Field(None, description="The same, by its newer name, which comes first.")

    @property
    def asker(self) -> str | None:
        """See TranslatedRequest."""
        return self.safety_identifier or self.user


class StreamOptions(Sifted):
    """Information in a stream beside the text."""

    FIELDS: ClassVar = STREAM_OPTIONS

    include_usage: bool | None = Field(None, description="A last event with `usage` and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="With it, each event has the `usage` so far.")


class SamplingRequest(OpenAIRequest):
    """Fields that `/v1/completions` and `/v1/chat/completions` have in common."""

    DIFFERS: ClassVar = {
        **OpenAIRequest.DIFFERS,
        "max_tokens": "OpenAI's is an error if the context has less room; here the answer ends there.",
        "n": "OpenAI's: up to 128.",
        "stop": "OpenAI's: up to 4.",
    }

    NATIVE_NAMES: ClassVar = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

    temperature: float | None = Field(None, ge=0, le=2, description=TEMPERATURE)
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from the likeliest tokens of this total mass.")
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES, description="Answers to each prompt; default 1.")
    stop: StopTexts | None = Field(None, description="One text or up to 16 that end the answer, and are not in it.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="The same seed gives the same samples; taken modulo 2^31."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Taken off each token already generated.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each time it occurred.")
    logit_bias: LogitBias | None = Field(None, description="Token id to a value added to its logit.")
    stream: bool | None = Field(None, description="Answer with server-sent events, the last of them `[DONE]`.")
    stream_options: StreamOptions | None = Field(None, description="`include_usage`: a last event with the usage.")
    response_format: ResponseFormat | None = Field(
        None, description="`json_object`, `json_schema`; beyond OpenAI's also `regex` and `choice`. Enforced."
    )
    top_k: TopK | None = Field(None, description="Beyond OpenAI's: the k likeliest tokens only; 0 or -1 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Beyond OpenAI's: drop tokens below this share.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Beyond OpenAI's: CTRL's penalty.")
    adapter: Name | None = Field(None, description=f"Beyond OpenAI's: {ADAPTER}")
    timings: bool | None = Field(None, description=f"Beyond OpenAI's: {TIMINGS}")
    min_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Beyond OpenAI's: hold the end of sequence back for so many tokens."
    )
    stop_token_ids: StopTokenIds | None = Field(
        None, description="Beyond OpenAI's: up to 64 token ids that end the answer."
    )
    ignore_eos: bool | None = Field(None, description="Beyond OpenAI's: go on after the model's end of sequence.")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond OpenAI's: {CACHE_SALT}")
    cache_prompt: bool | None = Field(None, description="Beyond OpenAI's: false: no prefix is reused; default true.")
    prompt_cache_key: PromptCacheKey | None = Field(None, description=CACHE_KEY)

    @model_validator(mode="after")
    def _possible(self) -> "SamplingRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: this goes with stream only", param="stream_options")
        return self

    @property
    def includes_usage(self) -> bool:
        """True when a stream ends with an event that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def always_has_usage(self) -> bool:
        """True when each event of a stream has the usage so far."""
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def has_last_event(self) -> bool:
        """True when a stream ends with an event without choices, for the usage or the timings."""
        return self.includes_usage or bool(self.timings)

    def sampling(self) -> dict[str, Any]:
        """Return the native parameters."""
        same = ("n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "response_format")
        more = ("model", "adapter", "top_k", "min_p", "repetition_penalty", "timings", "cache_salt")
        of_others = ("stop_token_ids", "ignore_eos", "prompt_cache_key")
        given = {name: getattr(self, name) for name in (*same, *more, *of_others)}
        if self.cache_prompt is False:
            given["cache_salt"] = secrets.token_hex(16)  # nothing else has it, so nothing is reused
        return {
            **given,
            "min_new_tokens": self.min_tokens,
            "seed": None if self.seed is None else self.seed % (INT32_MAX + 1),
            "temperature": self.temperature,
            "default_temperature": DEFAULT_TEMPERATURE,
            "top_p": None if self.top_p is None else max(LEAST_TOP_P, self.top_p),
        }


class UsageSum:
    """Usage of several native answers together, and their timings. For a stream, the last event counts."""

    def __init__(self) -> None:
        self._each: dict[int, Usage] = {}
        self._timings: dict[int, Timings] = {}

    def add(self, which: int, answer: Answer) -> None:
        """Add the usage of an answer, or of an event of a stream."""
        if isinstance(answer, Generation):
            self._each[which] = answer.usage
            if answer.timings is not None:
                self._timings[which] = answer.timings

    def timings(self) -> dict[str, Any]:
        """Return the field `timings`, if requested: those of the answer that took longest, since all ran together."""
        longest = max(self._timings.values(), key=lambda timings: timings.total_seconds, default=None)
        return {} if longest is None else {"timings": longest}

    def total(self) -> Usage:
        """Return the sum."""
        each = self._each.values()
        cached = sum(usage.prompt_tokens_details.cached_tokens for usage in each)
        details = [usage.completion_tokens_details for usage in each if usage.completion_tokens_details is not None]
        reasoning = {"reasoning_tokens": sum(one.reasoning_tokens for one in details)}
        thought = {"completion_tokens_details": CompletionTokensDetails(**reasoning)} if details else {}
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in each),
            completion_tokens=sum(usage.completion_tokens for usage in each),
            total_tokens=sum(usage.total_tokens for usage in each),
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            **thought,
        )

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        """Return the sum for whole answers."""
        usage = cls()
        for which, answer in enumerate(answers):
            usage.add(which, answer)
        return usage
