"""Answers, as pydantic models: what both doors, the Python model and the client give."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator

FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A token that could have stood here."""

    token: str
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of the answer, its log-probability before any penalty or temperature, and the likeliest tokens."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of the tokens of one choice, in OpenAI's chat shape."""

    content: list[TokenLogprob]


class PromptTokensDetails(BaseModel):
    """What became of the prompt's tokens, in OpenAI's shape."""

    cached_tokens: int = 0
    """Those that an earlier prompt or answer had left in the cache, so that they were not run again."""


class Usage(BaseModel):
    """Tokens counted so far."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    # Other servers leave it out, or say null.
    prompt_tokens_details: Annotated[
        PromptTokensDetails, BeforeValidator(lambda value: {} if value is None else value)
    ] = PromptTokensDetails()


class Choice(BaseModel):
    """One answer to `generate`, or what is new of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class ChatMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str


class Delta(BaseModel):
    """What is new of the answer to a chat; `role` comes first, alone or with the first text."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    """One answer to `chat`."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class ChatChunkChoice(BaseModel):
    """What is new of one answer to `chat`."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Answer(BaseModel):
    """What every answer and every event of a stream has."""

    id: str
    created: int
    model: str

    def to_json(self) -> str:
        """The wire's JSON: fields that do not apply are left out, an unknown `finish_reason` stays as null."""
        return self.model_dump_json(exclude=_absent(self))


class Generation(Answer):
    """An answer that is a text, or what is new of it."""

    usage: Usage

    @property
    def text(self) -> str:
        """The text of the first choice (in a stream: what is new of it)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


class Completion(Generation):
    """The answer to `generate`; as an event of a stream, `choices` holds the new text only."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]
    prompt: str | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""


class ChatCompletion(Generation):
    """The answer to `chat`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]

    @property
    def text(self) -> str:
        return self.choices[0].message.content if self.choices else ""


class ChatCompletionChunk(Generation):
    """An event of a streamed answer to `chat`."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].delta.content or "") if self.choices else ""


class Status(BaseModel):
    """What an executor says of itself on `/status`."""

    state: Literal["ready", "draining", "dead"]
    model: str
    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that wait for a place."""


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def _absent(answer: Answer) -> dict[str, Any]:
    """What `model_dump_json(exclude=...)` leaves out: None values, but not `finish_reason`."""
    choices: dict[int, Any] = {}
    for i, choice in enumerate(getattr(answer, "choices", ())):
        left_out: dict[str, Any] = {} if choice.logprobs else {"logprobs": True}
        if isinstance(choice, ChatChunkChoice):
            left_out["delta"] = {name for name in ("role", "content") if getattr(choice.delta, name) is None}
        choices[i] = left_out
    absent: dict[str, Any] = {"choices": choices}
    if getattr(answer, "prompt", "") is None:
        absent["prompt"] = True
    return absent
