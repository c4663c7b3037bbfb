"""`/v1/completions`: texts or token ids, continued or scored."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from run_gpt.api.answers import Answer, Choice, FinishReason, GenerateAnswer, TokenLogprob, TopLogprob, Usage, absent
from run_gpt.api.field_tables import COMPLETION
from run_gpt.api.openai.base import LengthOrNone, OpenAIAnswer, SamplingRequest, UsageSum
from run_gpt.api.pieces import Likely, Token
from run_gpt.api.schema import MAX_SEQUENCES, SUFFIX, GenerateRequest
from run_gpt.api.sse import TEXT, PlainEvent
from run_gpt.api.timings import Timings
from run_gpt.api.translated import EventWriter
from run_gpt.api.values import AnyTextOrIds, Text, few_ids, require_text
from run_gpt.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024

_read_tokens = msgspec.json.Decoder(list[Token]).decode
_write = msgspec.json.Encoder().encode


def _several(prompt: Any) -> Any:
    """Return the prompts as a list: one text or one list of token ids is one prompt."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        return [prompt]
    return prompt


Prompts = Annotated[
    list[AnyTextOrIds],
    Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
    AfterValidator(few_ids),
    BeforeValidator(_several, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(SamplingRequest):
    """Continue texts, or score them."""

    FIELDS: ClassVar = COMPLETION
    DIFFERS: ClassVar = {
        **SamplingRequest.DIFFERS,
        "prompt": "OpenAI's may be left out.",
        "logprobs": "OpenAI's: up to 5.",
        "best_of": "OpenAI's: up to 20.",
    }

    prompt: Prompts = Field(description="A text, token ids, or a list of either.")
    suffix: Text | None = Field(None, description=SUFFIX)
    max_tokens: LengthOrNone | None = Field(
        None,
        description=f"Most tokens in an answer; default {DEFAULT_MAX_TOKENS}. 0: the prompt is scored only; -1: what "
        "the model's context leaves.",
    )
    echo: bool | None = Field(None, description="Begin the answer with the prompt, its tokens' logprobs included.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probabilities of the tokens, with so many alternatives each."
    )
    best_of: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="Make so many answers, give back the likeliest `n` a token."
    )

    @model_validator(mode="after")
    def _possible_prompts(self) -> "CompletionRequest":
        for i, prompt in enumerate(self.prompt):
            require_text(prompt, self.suffix, f"prompt[{i}]")
        return self

    @model_validator(mode="after")
    def _possible_best(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequest(f"best_of = {self.best_of}: this is less than n = {self.n}", param="best_of")
        return self

    def make_natives(self) -> Sequence[GenerateRequest]:
        """See TranslatedRequest."""
        common = {
            **self.sampling(),
            "max_new_tokens": DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            "echo": self.echo,
            "suffix": self.suffix,
            "logprobs": self.logprobs,
            "best_of": self.best_of,
        }
        first = GenerateRequest.parse({**common, "prompt": self.prompt[0]}, stream=bool(self.stream))
        # The others differ in nothing but the prompt, which has been checked: so many checks would take too long.
        return [first, *(first.model_copy(update={"prompt": prompt}) for prompt in self.prompt[1:])]

    def join(self, answers: Sequence[Answer]) -> Answer:
        """See TranslatedRequest."""
        wholes = cast("Sequence[GenerateAnswer]", answers)
        n = self.n or 1
        choices = [
            _choice(choice, i * n + choice.index, Offsets())
            for i, whole in enumerate(wholes)
            for choice in whole.choices
        ]
        usage = UsageSum.of(answers)
        return Completion(**_about(wholes[0]), choices=choices, usage=usage.total(), **usage.timings())

    def part_writer(self) -> "LogprobsWriter":
        """See AnyRequest."""
        return LogprobsWriter()

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
        return _Writer(self)


class CompletionLogprobs(BaseModel):
    """Log-probabilities in the shape of OpenAI's completions: lists with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Positions in the choice's text at which the tokens begin."""


class CompletionChoice(BaseModel):
    """One answer, or its new part in a stream."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(OpenAIAnswer):
    """The answer to `/v1/completions`, or an event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = absent()


class Offsets:
    """Counter of the characters of the tokens so far. A character that several tokens share counts for the first."""

    def __init__(self) -> None:
        self.characters = 0

    def next(self, token: TokenLogprob | Token) -> int:
        """Return the position at which this token begins."""
        begins = self.characters
        data = token.token.encode() if token.bytes is None else bytes(token.bytes)
        self.characters += sum(byte & 0xC0 != 0x80 for byte in data)
        return begins


class LogprobsWriter:
    """Writer of a choice's log-probabilities part by part (see api.long_parts.PartWriter): no call holds long ones."""

    def __init__(self) -> None:
        self._offsets: dict[Hashable, Offsets] = {}

    def __call__(self, sequence: Hashable, parts: Sequence[bytes]) -> bytes:
        """Write new log-probabilities of a sequence."""
        offsets = self._offsets.setdefault(sequence, Offsets())
        lists: dict[str, list[bytes]] = {name: [] for name in CompletionLogprobs.model_fields}
        for part in parts:
            for name, values in _columns(_read_tokens(b"[" + part + b"]"), offsets).items():
                lists[name].append(_write(values)[1:-1])
        return b"{" + b",".join(b'"%b":[%b]' % (name.encode(), b",".join(some)) for name, some in lists.items()) + b"}"


class _Writer:
    def __init__(self, request: CompletionRequest):
        self._request = request
        self._usage = UsageSum()
        self._always_usage = request.always_has_usage
        self._offsets: dict[int, Offsets] = {}
        self._plain: dict[int, PlainEvent] = {}
        self._about: dict[str, Any] = {}
        """Fields that all events share: they are one answer, to any number of prompts."""

    def events(self, which: int, event: Answer) -> Iterator[Answer]:
        """See EventWriter."""
        answer = cast("GenerateAnswer", event)
        self._about = self._about or _about(answer)
        self._usage.add(which, event)
        choices = []
        for choice in answer.choices:
            index = which * (self._request.n or 1) + choice.index
            choices.append(_choice(choice, index, self._offsets.setdefault(index, Offsets())))
        yield self._event(choices)

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """See EventWriter."""
        if not self._about or self._always_usage:
            return None
        index += which * (self._request.n or 1)
        if index not in self._plain:
            choice = CompletionChoice(text=TEXT, index=index, logprobs=None, finish_reason=None)
            self._plain[index] = PlainEvent(self._event([choice]))
        return self._plain[index].write(text)

    def end(self) -> Iterator[Answer]:
        """See EventWriter."""
        if self._request.has_last_event:
            yield self._event([], self._usage)

    def _event(self, choices: list[CompletionChoice], usage: UsageSum | None = None) -> Completion:
        """Make an event. `usage` is given for the last event only."""
        event = Completion(**self._about, choices=choices, **(usage.timings() if usage else {}))
        if self._request.includes_usage:
            event.usage = self._usage.total() if usage or self._always_usage else None
        return event


def _about(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.model}


def _choice(choice: Choice, index: int, offsets: Offsets) -> CompletionChoice:
    logprobs = None
    if choice.logprobs is not None:
        logprobs = CompletionLogprobs(**_columns(choice.logprobs.content, offsets))
    return CompletionChoice(text=choice.text, index=index, logprobs=logprobs, finish_reason=choice.finish_reason)


def _columns(tokens: "Sequence[TokenLogprob] | Sequence[Token]", offsets: Offsets) -> dict[str, Any]:
    """Return the fields of CompletionLogprobs."""
    return {
        "tokens": [token_text(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [offsets.next(token) for token in tokens],
    }


def _top(token: TokenLogprob | Token) -> dict[str, float] | None:
    """Return the likeliest tokens, and this one if it is not among them."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in token.top_logprobs:
        top.setdefault(token_text(other), other.logprob)
    top.setdefault(token_text(token), token.logprob)
    return top


def token_text(token: TokenLogprob | TopLogprob | Token | Likely) -> str:
    """Return a token's text; for a token that is a part of a character its bytes, as OpenAI writes them."""
    if token.bytes is None:
        return token.token
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
