"""Common parts of requests of OpenAI's API: native requests, refused fields, sampling, usage."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from run_gpt.api.answers import Answer, Body, Generation, PromptTokensDetails, Usage
from run_gpt.api.chat import ResponseFormat
from run_gpt.api.schema import ADAPTER, CACHE_SALT, MAX_SEQUENCES, AnyRequest, CacheSalt, LogitBias, StopTexts
from run_gpt.api.timings import TIMINGS, Timings
from run_gpt.api.values import INT32_MAX, Name, OnlyFalse, Text
from run_gpt.errors import InvalidRequest

LEAST_TOP_P = 1e-9
DEFAULT_MAX_TOKENS = 4096
"""Default of most tokens in a chat's answer. OpenAI's default is the rest of the context. But each sequence reserves
memory for its longest answer, and with whole contexts only few sequences could run together."""
MAX_TOKENS = f"Most tokens in an answer; default {DEFAULT_MAX_TOKENS}, or what the model's context leaves."


class OpenAIAnswer(Answer):
    """An answer of OpenAI's API. Its JSON has the fields that were set, nulls included."""

    def to_json(self) -> str:
        """Return the wire's JSON."""
        return self.model_dump_json(exclude_unset=True)


class EventWriter(Protocol):
    """Converter from the events of native streams to those of OpenAI's."""

    def events(self, which: int, event: Answer) -> Iterable[Body]:
        """Return the events made from an event of the native stream number `which`."""

    def plain(self, which: int, index: int, text: str) -> bytes | None:
        """Write the server-sent event of text alone, the fast way; None where such text makes other events.

        `index` is the number of the sequence in the native stream `which`. That stream has had an event before.
        """

    def end(self) -> Iterable[Body]:
        """Return the events after the last native one."""


class OpenAIRequest(AnyRequest):
    """A request of OpenAI's API."""

    REFUSED: ClassVar[Mapping[str, str]] = {}
    """OpenAI's fields that are a 400 here, with the reasons."""
    GRANTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values of refused fields that are accepted, since they ask for the behaviour here."""
    DIFFERS: ClassVar[Mapping[str, str]] = {"model": "OpenAI's must be given."}
    """Fields that differ at OpenAI, with the difference."""
    NATIVE_NAMES: ClassVar[Mapping[str, str]] = {}
    """Names of this API for native fields that errors may name."""

    user: Text | None = Field(None, description="Who asks: it stands in the request log (`--log-requests`).")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, why in cls.REFUSED.items():
            value, granted = data.get(name), cls.GRANTED.get(name, ())
            if value is not None and not any(value == one and type(value) is type(one) for one in granted):
                raise InvalidRequest(f"{name}: this is not supported here: {why}", param=name)
        return {name: value for name, value in data.items() if name not in cls.REFUSED}

    @classmethod
    def parse(cls, data: dict[str, Any], *, stream: bool = False) -> Self:
        """See AnyRequest. `stream` makes an unset field `stream` true; without it, the field decides."""
        if stream and data.get("stream") is None:
            data = {**data, "stream": True}
        request = super().parse(data)
        if stream and not request.streams:
            raise InvalidRequest("stream = False: this call is a stream", param="stream")
        return request

    @property
    def streams(self) -> bool:
        """True when the request asks for a streamed answer."""
        return bool(getattr(self, "stream", False))

    def natives(self) -> Sequence[AnyRequest]:
        """Return the native requests that this one stands for; they are made once. Raises InvalidRequest."""
        return self.made_natives

    @cached_property
    def made_natives(self) -> Sequence[AnyRequest]:
        """See `natives`."""
        return self.make_natives()

    @abstractmethod
    def make_natives(self) -> Sequence[AnyRequest]:
        """Make the native requests."""

    @abstractmethod
    def join(self, answers: Sequence[Answer]) -> Body:
        """Return the answer, joined from the answers to the native requests."""

    def writer(self) -> EventWriter:
        """Return the writer that makes the events of the answer from those of the native streams."""
        raise InvalidRequest("this request has no streamed answer")


class StreamOptions(BaseModel):
    """Information in a stream beside the text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    include_usage: bool | None = Field(None, description="A last event with `usage` and no choices.")
    include_obfuscation: OnlyFalse | None = Field(None, description="Only false: nothing is padded here.")


class SamplingRequest(OpenAIRequest):
    """Fields that `/v1/completions` and `/v1/chat/completions` have in common."""

    DIFFERS: ClassVar = {
        **OpenAIRequest.DIFFERS,
        "max_tokens": "OpenAI's is an error if the context has less room; here the answer ends there.",
        "n": "OpenAI's: up to 128.",
        "stop": "OpenAI's: up to 4.",
        "stream_options": "OpenAI's: `include_obfuscation`, too; here it may only be false.",
    }

    temperature: float | None = Field(None, ge=0, le=2, description="Default 1; 0 is greedy.")
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
    top_k: int | None = Field(None, ge=0, le=INT32_MAX, description="Beyond OpenAI's: the k likeliest tokens only.")
    min_p: float | None = Field(None, ge=0, le=1, description="Beyond OpenAI's: drop tokens below this share.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Beyond OpenAI's: CTRL's penalty.")
    adapter: Name | None = Field(None, description=f"Beyond OpenAI's: {ADAPTER}")
    timings: bool | None = Field(None, description=f"Beyond OpenAI's: {TIMINGS}")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond OpenAI's: {CACHE_SALT}")

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
    def has_last_event(self) -> bool:
        """True when a stream ends with an event without choices, for the usage or the timings."""
        return self.includes_usage or bool(self.timings)

    def sampling(self) -> dict[str, Any]:
        """Return the native parameters."""
        same = ("n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "response_format")
        more = ("model", "adapter", "top_k", "min_p", "repetition_penalty", "timings", "cache_salt")
        given = {name: getattr(self, name) for name in (*same, *more)}
        return {
            **given,
            "seed": None if self.seed is None else self.seed % (INT32_MAX + 1),
            "temperature": 1.0 if self.temperature is None else float(self.temperature),
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
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in each),
            completion_tokens=sum(usage.completion_tokens for usage in each),
            total_tokens=sum(usage.total_tokens for usage in each),
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        """Return the sum for whole answers."""
        usage = cls()
        for which, answer in enumerate(answers):
            usage.add(which, answer)
        return usage
